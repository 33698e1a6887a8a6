"""The comparison as one picture: loss over tokens, training FLOPs and seconds, and final loss over inference FLOPs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from latentpt.compare.results import ArmResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

matplotlib.use("Agg")

# Distinguishable for colour-blind readers too (Okabe and Ito), the reference in grey.
REFERENCE_COLOUR = "#555555"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B5EA7", "#B22222")
AXES = {"tokens": "training tokens", "training_flops": "training FLOPs", "seconds": "seconds of training"}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
}


def draw(results: Results, title: str) -> bytes:
    """All panels as one PNG."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
        colours = colours_of(results)
        for axes, (key, label) in zip(panels.flat, AXES.items(), strict=False):
            for arm in results.arms:
                draw_curve(axes, arm, key, colours[arm.name])
            axes.set(
                xlabel=label,
                ylabel="validation loss (nats per token)",
                xlim=(0, None),
                ylim=loss_range(results),
            )
        draw_final(panels.flat[-1], results, colours)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        for axes in panels.flat:
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
        figure.suptitle(title)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=144)
        plt.close(figure)
    return picture.getvalue()


def colours_of(results: Results) -> dict[str, str]:
    """A colour for every arm, grey for the reference."""
    reference = results.plan.comparison.reference_arm
    others = [arm.name for arm in results.plan.arms if arm.name != reference]
    return {reference: REFERENCE_COLOUR, **{name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}}


def draw_curve(axes: Axes, arm: ArmResult, key: str, colour: str) -> None:
    """Mean curve of an arm over its seeds, with the band between the lowest and the highest."""
    points = min(len(run.curve["loss"]) for run in arm.runs)
    x = np.mean([run.curve[key][:points] for run in arm.runs], axis=0)
    losses = np.array([run.curve["loss"][:points] for run in arm.runs])
    axes.plot(x, losses.mean(0), color=colour, label=arm.name, linewidth=1.8)
    if len(arm.runs) > 1:
        axes.fill_between(x, losses.min(0), losses.max(0), color=colour, alpha=0.18, linewidth=0)


def draw_final(axes: Axes, results: Results, colours: dict[str, str]) -> None:
    """Loss of exact decoding (filled) and of the training forward (hollow) over what a decoded token costs."""
    for arm in results.arms:
        x = arm.plan.inference_flops_per_token
        for run in arm.runs:
            axes.plot(
                [x, x], [run.measured.loss, run.measured.exact_loss], color=colours[arm.name], linewidth=1
            )
            axes.plot(
                x, run.measured.loss, "o", color=colours[arm.name], markerfacecolor="white", markersize=7
            )
            axes.plot(x, run.measured.exact_loss, "o", color=colours[arm.name], markersize=5)
    axes.set(
        xlabel="inference FLOPs per token",
        ylabel="final loss (filled: exact decoding)",
        xlim=(0, 1.15 * max(arm.plan.inference_flops_per_token for arm in results.arms)),
    )
    axes.margins(y=0.15)


def loss_range(results: Results) -> tuple[float, float]:
    """From just below the best loss to the loss after a tenth of training; the fall before would flatten the rest."""
    finals = [run.curve["loss"].min() for arm in results.arms for run in arm.runs]
    early = [run.curve["loss"][len(run.curve["loss"]) // 10] for arm in results.arms for run in arm.runs]
    low, high = float(min(finals)), float(max(early))
    return low - 0.05 * (high - low), high
