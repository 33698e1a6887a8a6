"""The pictures of a ladder: isoFLOP curves, frontiers, multipliers, and every run over what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from latentpt.compare.fits.draws import Interval
from latentpt.compare.fits.frontier import frontier
from latentpt.compare.fits.isoflop import parabola
from latentpt.compare.fits.law import Design, log_loss
from latentpt.compare.report.plots import Look, looks_of
from latentpt.compare.report.study import ArmStudy, Multiplier, Run, Study
from latentpt.pages.drawing import STYLE, png
from latentpt.pages.tables import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS = "exact-decode loss (nats per token)"


def draw_all(study: Study) -> Iterator[tuple[str, str, bytes]]:
    """File name, what it shows and the PNG of every picture that the finished runs allow."""
    looks = looks_of(study.results)
    yield (
        "isoflop.png",
        "Loss over size at each budget; dashed the parabola, full the law",
        draw_isoflop(study, looks),
    )
    if any(arm.draws is not None for arm in study.arms.values()):
        words = "Lowest loss over training FLOPs, with 90 % of the bootstrap; marks are the best runs of each budget"
        yield "frontier.png", words, draw_frontier(study, looks)
    if any(arm.multipliers for arm in study.arms.values()):
        yield (
            "multipliers.png",
            "Compute multipliers with 90 % of the bootstrap",
            draw_multipliers(study, looks),
        )
    yield (
        "costs.png",
        "Every run's loss over tokens, FLOPs and seconds; lines join the best",
        draw_costs(study, looks),
    )


def draw_isoflop(study: Study, looks: dict[str, Look]) -> bytes:
    """A panel for each arm: loss over parameters, a colour for each budget."""
    import matplotlib.pyplot as plt

    arms, budgets = list(study.arms.values()), study.budgets
    columns = min(len(arms), 3)
    rows = -(-len(arms) // columns)
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(budgets)))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            rows,
            columns,
            figsize=(4.2 * columns, 3.6 * rows),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for axes, arm in zip(panels.flat, arms, strict=False):
            for flops, colour in zip(budgets, colours, strict=True):
                draw_budget(axes, arm, flops, colour)
            axes.set(title=arm.name, xscale="log")
        for axes in list(panels.flat)[len(arms) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel(LOSS)
        for axes in panels[-1]:
            axes.set_xlabel("parameters outside embeddings and head")
        handles = [
            plt.Line2D([], [], color=c, marker="o", label=f"{quantity(b)} FLOPs")
            for b, c in zip(budgets, colours, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(budgets))
        return png(figure)


def draw_budget(axes: Axes, arm: ArmStudy, flops: float, colour: Any) -> None:
    """The runs of one budget, their parabola and the law."""
    runs = [run for run in arm.runs if run.arm.rung == flops]
    if not runs:
        return
    sizes = np.array([run.arm.body_parameters for run in runs], dtype=float)
    losses = np.array([run.loss for run in runs])
    axes.plot(sizes, losses, "o", color=colour, markersize=4)
    x = np.geomspace(sizes.min() / 1.2, sizes.max() * 1.2, 60)
    found = parabola(sizes, losses[None])
    if found is not None:
        bend, slope, height = found.factors[0]
        u = np.log(x) - found.middle
        axes.plot(x, height + slope * u + bend * u**2, "--", color=colour, linewidth=1)
    if arm.fit is not None:
        costs = arm.costs
        training = np.exp(np.interp(np.log(x), np.log(costs.parameters), np.log(costs.training)))
        law = np.exp(log_loss(arm.fit.theta[None], Design.plain(x, flops / training))[0])
        axes.plot(x, law, color=colour, linewidth=1.4)


def draw_frontier(study: Study, looks: dict[str, Look]) -> bytes:
    """Lowest loss over training FLOPs."""
    import matplotlib.pyplot as plt

    low, high = study.budgets[0], study.budgets[-1]
    grid = np.geomspace(low / 1.5, high * 1.5, 40)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 5.6), layout="constrained")
        for arm in study.arms.values():
            look = looks[arm.name]
            if arm.fit is not None and arm.draws is not None:
                line = [frontier(arm.fit.theta[None], arm.costs, flops).loss[0] for flops in grid]
                drawn = np.array([frontier(arm.draws, arm.costs, flops).loss for flops in grid])
                axes.fill_between(
                    grid,
                    *np.quantile(drawn, [0.05, 0.95], axis=1),
                    color=look.colour,
                    alpha=0.12,
                    linewidth=0,
                )
                axes.plot(
                    grid, line, color=look.colour, linestyle=look.dash, linewidth=look.width, label=arm.name
                )
            best = [min(run.loss for run in runs) for runs in by_budget(arm)]
            axes.plot(
                [runs[0].place[1] for runs in by_budget(arm)],
                best,
                look.marker,
                color=look.colour,
                markersize=6,
            )
        axes.set(xscale="log", xlabel="training FLOPs", ylabel=LOSS)
        axes.legend(fontsize=9)
        return png(figure)


def by_budget(arm: ArmStudy) -> list[list[Run]]:
    """The runs of an arm, a list for each budget, growing."""
    rungs = sorted({run.arm.rung for run in arm.runs if run.arm.rung})
    return [[run for run in arm.runs if run.arm.rung == flops] for flops in rungs]


def draw_multipliers(study: Study, looks: dict[str, Look]) -> bytes:
    """Multipliers at each arm's largest budget, a panel for training, inference and each number of tokens served."""
    import matplotlib.pyplot as plt

    arms = [arm for arm in study.arms.values() if arm.multipliers]
    panels: dict[str, Callable[[Multiplier], Interval]] = {
        "training FLOPs": lambda found: found.training,
        "inference FLOPs per token": lambda found: found.inference,
    }
    for served in study.ladder.served:
        panels[f"lifetime FLOPs, {quantity(served)} served"] = partial(lifetime, served=served)
    with plt.rc_context(STYLE):
        figure, drawn = plt.subplots(
            1,
            len(panels),
            figsize=(3.4 * len(panels) + 1.5, 1.4 + 0.4 * len(arms)),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        for axes, (words, of) in zip(drawn[0], panels.items(), strict=True):
            draw_column(axes, words, [(arm.name, of(arm.multipliers[-1])) for arm in reversed(arms)], looks)
        return png(figure)


def lifetime(found: Multiplier, served: float) -> Interval:
    """The lifetime multiplier for a number of tokens served."""
    return found.lifetime[served]


def draw_column(
    axes: Axes, words: str, found: Sequence[tuple[str, Interval]], looks: dict[str, Look]
) -> None:
    """One kind of multiplier, arm by arm; what is out of reach leaves the panel on the right."""
    finite = [x for _, interval in found for x in interval if np.isfinite(x) and x > 0]
    left, right = (min([*finite, 0.8]) / 1.15, max([*finite, 1.25]) * 1.15)
    axes.axvline(1, color="black", linewidth=1)
    for y, (name, interval) in enumerate(found):
        value, low, high = (float(np.clip(x, left, right * 1.5)) for x in interval)
        axes.plot([low, high], [y, y], color=looks[name].colour, linewidth=2)
        axes.plot(value, y, looks[name].marker, color=looks[name].colour, markersize=7)
    axes.set(xscale="log", xlim=(left, right), xlabel=words)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if left <= t <= right]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()


def draw_costs(study: Study, looks: dict[str, Look]) -> bytes:
    """Four panels: loss over tokens, training FLOPs, FLOPs per decoded token and seconds."""
    import matplotlib.pyplot as plt

    kinds = {
        "training tokens": lambda run: run.result.tokens,
        "training FLOPs": lambda run: run.result.training_flops,
        "inference FLOPs per token": lambda run: run.arm.inference_flops_per_token,
        "seconds of training": lambda run: run.result.seconds,
    }
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(12, 8.4), layout="constrained", sharey=True)
        for axes, (words, of) in zip(panels.flat, kinds.items(), strict=True):
            for arm in study.arms.values():
                look = looks[arm.name]
                x, y = np.array([[of(run), run.loss] for run in arm.runs], dtype=float).T
                axes.plot(x, y, look.marker, color=look.colour, markersize=4, alpha=0.5)
                best = np.lexsort((y, x))
                best = best[y[best] <= np.minimum.accumulate(y[best])]
                axes.plot(
                    x[best],
                    y[best],
                    color=look.colour,
                    linestyle=look.dash,
                    linewidth=look.width,
                    label=arm.name,
                )
            axes.set(xscale="log", xlabel=words)
        for axes in panels[:, 0]:
            axes.set_ylabel(LOSS)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(labels), 4), handlelength=3.5
        )
        return png(figure)
