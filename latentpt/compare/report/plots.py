"""The comparison as two pictures: loss over what it costs, and the final losses arm by arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentpt.compare.report.results import ArmResult, Results
from latentpt.pages.drawing import COLOURS, STYLE, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The reference is black. Once all colours are used they come again with another dash; no two arms share both, and the
# marker follows the dash.
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D")
AXES = {"tokens": "training tokens", "training_flops": "training FLOPs", "seconds": "seconds of training"}
LOSS = "validation loss (nats per token)"


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    dash: Any
    marker: str
    width: float


def looks_of(results: Results) -> dict[str, Look]:
    """A look of its own for every planned arm (up to 28), the same whichever of them are finished."""
    reference = results.plan.comparison.reference_arm
    others = [name for name in dict.fromkeys(arm.arm for arm in results.plan.arms) if name != reference]
    looks = {reference: Look("black", "-", "*", 2.4)}
    for number, name in enumerate(others):
        again = number // len(COLOURS) % len(DASHES)
        looks[name] = Look(COLOURS[number % len(COLOURS)], DASHES[again], MARKERS[again], 1.5)
    return looks


def draw_costs(results: Results, title: str) -> bytes:
    """PNG of four panels: loss over tokens, training FLOPs and seconds, and the final loss over inference FLOPs."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    looks, rows = looks_of(results), -(-len(results.arms) // 4)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(12, 8.4 + 0.22 * rows), layout="constrained")
        for axes, (key, label) in zip(panels.flat, AXES.items(), strict=False):
            for arm in results.arms:
                draw_curve(axes, arm, key, looks[arm.name])
            axes.set(xlabel=label, ylabel=LOSS, xlim=(0, None), ylim=loss_range(results))
        draw_decoding(panels.flat[-1], results, looks)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        for axes in panels.flat:
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(labels), 4), handlelength=3.5
        )
        figure.suptitle(title)
        return png(figure)


def draw_curve(axes: Axes, arm: ArmResult, key: str, look: Look) -> None:
    """Mean curve of an arm over its seeds, with the band between the lowest and the highest."""
    points = min(len(run.curve["loss"]) for run in arm.runs)
    x = np.mean([run.curve[key][:points] for run in arm.runs], axis=0)
    losses = np.array([run.curve["loss"][:points] for run in arm.runs])
    axes.plot(
        x, losses.mean(0), color=look.colour, linestyle=look.dash, linewidth=look.width, label=arm.name,
        marker=look.marker, markevery=[points - 1], markersize=6,
    )  # fmt: skip
    if len(arm.runs) > 1:
        axes.fill_between(x, losses.min(0), losses.max(0), color=look.colour, alpha=0.08, linewidth=0)


def loss_range(results: Results) -> tuple[float, float]:
    """From just below the best loss to the loss after a quarter of training; the fall before would flatten the rest."""
    curves = [run.curve["loss"] for arm in results.arms for run in arm.runs]
    low = float(min(curve.min() for curve in curves))
    high = float(max(curve[min(-(-len(curve) // 4), len(curve) - 1)] for curve in curves))
    margin = 0.05 * max(high - low, 1e-3)
    return low - margin, high + margin


def draw_decoding(axes: Axes, results: Results, looks: dict[str, Look]) -> None:
    """Final loss over what a decoded token costs: exact decoding filled, the training forward hollow, seeds as a line."""
    costs = [arm.inference_flops_per_token for arm in results.arms]
    for arm, x in zip(results.arms, side_by_side(costs), strict=True):
        look, losses = looks[arm.name], [run.measured.exact_loss for run in arm.runs]
        axes.plot([x, x], [min(losses), max(losses)], color=look.colour, linewidth=1)
        axes.plot(x, arm.loss.mean, look.marker, color=look.colour, markerfacecolor="white", markersize=10)
        axes.plot(x, arm.exact_loss.mean, look.marker, color=look.colour, markersize=6)
    axes.set(
        xlabel="inference FLOPs per token (arms that cost the same stand side by side)",
        ylabel="final loss (filled: exact decoding)",
        xlim=(0, 1.15 * max(costs)),
    )
    axes.margins(y=0.15)


def side_by_side(costs: list[float], alike: float = 0.01, step: float = 0.008) -> list[float]:
    """Places for costs of which some are alike, up to a share of the largest: these stand around their mean, a step apart."""
    order = sorted(range(len(costs)), key=costs.__getitem__)
    groups: list[list[int]] = []
    for index in order:
        if groups and costs[index] - costs[groups[-1][-1]] < alike * max(costs):
            groups[-1].append(index)
        else:
            groups.append([index])
    places = list(costs)
    for group in groups:
        middle = sum(costs[index] for index in group) / len(group)
        for number, index in enumerate(group):
            places[index] = middle + step * max(costs) * (number - (len(group) - 1) / 2)
    return places


def draw_finals(results: Results, title: str) -> bytes:
    """PNG with one line an arm, the best on top: exact-decode loss minus the reference's of the same seed.

    Small marks are seeds, the large filled one their mean, the hollow one the training forward. The grey band is what the
    verdict calls not distinguishable. Without a finished reference the losses stand there as they are.
    """
    import matplotlib.pyplot as plt

    looks, reference = looks_of(results), results.reference
    base = {run.seed: run.measured.exact_loss for run in reference.runs} if reference else None
    drawn = []
    for arm in results.arms:
        runs = [run for run in arm.runs if base is None or run.seed in base]
        if runs:
            shift = [base[run.seed] if base else 0.0 for run in runs]
            exact = np.array([run.measured.exact_loss for run in runs]) - shift
            drawn.append((arm, exact, np.array([run.measured.loss for run in runs]) - shift))
    drawn.sort(key=lambda entry: -entry[1].mean())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(12, 1.6 + 0.34 * len(drawn)), layout="constrained")
        smallest = results.smallest_difference() if base else None
        if smallest is not None:
            axes.axvspan(-smallest, smallest, color="#e9e9e9", linewidth=0, label="not distinguishable")
        for y, (arm, exact, forward) in enumerate(drawn):
            look = looks[arm.name]
            axes.plot(exact, np.full(len(exact), y), "|", color=look.colour, markersize=11)
            axes.plot(forward.mean(), y, "o", color=look.colour, markerfacecolor="white", markersize=9)
            axes.plot(exact.mean(), y, "o", color=look.colour, markersize=5)
        axes.set_yticks(range(len(drawn)), [f"{arm.name}  {arm.exact_loss.mean:.4f}" for arm, _, _ in drawn])
        axes.set_ylim(-0.7, len(drawn) - 0.3)
        what = f"exact-decode loss minus that of {reference.name} (nats per token)" if reference else LOSS
        axes.set(xlabel=f"{what}; mark: a seed, filled: their mean, hollow: training forward")
        axes.set_title(title)
        return png(figure)
