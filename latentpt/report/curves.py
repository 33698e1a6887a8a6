"""The curves of a training as one picture: losses above, gradient norm, learning rate, residuals and speed below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latentpt.pages.drawing import COLOURS, LOSS, STYLE, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[dict[str, Any]]
INK = "#1c1c1c"
PHASES = ("time/data", "time/pass", "time/forward", "time/backward", "time/reduction", "time/optimizer")
"""What steps spend their time on, from first to last; all passes are one."""


def draw_run(lines: Lines, title: str) -> bytes:
    """PNG of everything in a metrics.jsonl over the tokens read."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    trained = [line for line in lines if line["kind"] == "train"]
    measured = [line for line in lines if line["kind"] == "validation"]
    panels: list[Callable[[Axes, Lines], None]] = [draw_norms, draw_rates, draw_speeds]
    if residual_names(trained):
        panels.insert(2, draw_residuals)
    if any(PHASES[0] in line for line in trained):
        panels.append(draw_times)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 7.6), layout="constrained")
        grid = figure.add_gridspec(2, len(panels), height_ratios=[1.5, 1])
        top = figure.add_subplot(grid[0, :])
        draw_losses(top, trained, measured)
        below = [figure.add_subplot(grid[1, column]) for column in range(len(panels))]
        for axes, draw in zip(below, panels, strict=True):
            draw(axes, trained)
        for axes in (top, *below):
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
            axes.set(xlabel="tokens", xlim=(0, None))
        figure.suptitle(title)
        return png(figure)


def points(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of a name; what was not finite is a gap."""
    found = [(line["tokens"], line.get(name)) for line in lines if name in line]
    values = [np.nan if value is None else value for _, value in found]
    return np.array([tokens for tokens, _ in found], dtype=float), np.array(values, dtype=float)


def draw_losses(axes: Axes, trained: Lines, measured: Lines) -> None:
    """Loss of training, pale where single and dark where smoothed, and of every held-out source."""
    x, losses = points(trained, "loss")
    axes.plot(x, losses, color=INK, alpha=0.25, linewidth=1)
    axes.plot(x, smoothed(losses), color=INK, linewidth=1.6, label="training")
    names = ["loss", *sorted({name for line in measured for name in line if name.startswith("loss/")})]
    shown = [losses]
    for number, name in enumerate(names):
        x, values = points(measured, name)
        colour = COLOURS[number % len(COLOURS)]
        label = name.replace("loss/", "validation, ") if number else "validation"
        alone = "o" if len(values) < 60 else ""
        axes.plot(
            x,
            values,
            color=colour,
            marker=alone,
            markersize=4,
            linewidth=1.8 if not number else 1.1,
            label=label,
        )
        shown.append(values)
    axes.set(ylabel=LOSS, ylim=loss_range(shown))
    axes.legend()


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the curve, gaps left out; a short curve stays as it is."""
    width = max(1, len(values) // 50)
    if not len(values):
        return values
    there = np.isfinite(values)
    window = np.ones(width)
    sums = np.convolve(np.where(there, values, 0.0), window, mode="full")[: len(values)]
    counts = np.convolve(there.astype(float), window, mode="full")[: len(values)]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def loss_range(curves: Sequence[np.ndarray]) -> tuple[float, float] | tuple[None, None]:
    """From just below the best loss to that after a tenth of training; the fall before would flatten the rest."""
    known = [curve[np.isfinite(curve)] for curve in curves]
    known = [curve for curve in known if len(curve)]
    if not known:
        return None, None
    low = min(float(curve.min()) for curve in known)
    high = max(float(curve[min(-(-len(curve) // 10), len(curve) - 1) :].max()) for curve in known)
    margin = 0.05 * max(high - low, 1e-3)
    return low - margin, high + margin


def draw_norms(axes: Axes, trained: Lines) -> None:
    """Norm of the gradient before clipping; skipped steps as crosses below."""
    x, norms = points(trained, "grad_norm")
    axes.plot(x, norms, color=COLOURS[0], linewidth=1.2)
    _, skipped = points(trained, "skipped")
    more = np.flatnonzero(np.diff(skipped, prepend=0.0) > 0)
    if len(more):
        axes.plot(x[more], np.zeros(len(more)), "x", color="#c44", label="steps skipped")
        axes.legend()
    axes.set(title="gradient norm", ylim=(0, None))


def draw_rates(axes: Axes, trained: Lines) -> None:
    """Learning rate."""
    x, rates = points(trained, "lr")
    axes.plot(x, rates, color=COLOURS[1], linewidth=1.6)
    axes.set(title="learning rate", ylim=(0, None))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def residual_names(trained: Lines) -> list[str]:
    """Names of what was measured of refinements, in their order."""
    names = {name for line in trained for name in line if name.startswith("residual/")}
    return sorted(names, key=lambda name: int(name.partition("/")[2]))


def draw_residuals(axes: Axes, trained: Lines) -> None:
    """How far each refinement moved the states, on a logarithmic axis."""
    for number, name in enumerate(residual_names(trained)):
        x, values = points(trained, name)
        axes.plot(
            x, np.where(values > 0, values, np.nan), color=COLOURS[number % len(COLOURS)], linewidth=1.2,
            label=f"refinement {name.partition('/')[2]}",
        )  # fmt: skip
    axes.set(title="residual of the solver", yscale="log")
    axes.legend(fontsize=8)


def draw_speeds(axes: Axes, trained: Lines) -> None:
    """Tokens a second; the median as a line, since the first steps are slow and some are held up."""
    from matplotlib.ticker import EngFormatter

    x, speeds = points(trained, "tokens_per_second")
    axes.plot(x, speeds, color=COLOURS[2], linewidth=1.2)
    if len(speeds):
        axes.axhline(
            float(np.nanmedian(speeds)), color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="median"
        )
        axes.legend(loc="lower right")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set(title="tokens a second", ylim=(0, None))


def draw_times(axes: Axes, trained: Lines) -> None:
    """Shares of the time that the phases of steps take, stacked."""
    from matplotlib.ticker import PercentFormatter

    told = [line for line in trained if PHASES[0] in line]
    shares = np.array(
        [[sum(v for k, v in line.items() if k.startswith(phase)) for line in told] for phase in PHASES]
    )
    names = [phase.removeprefix("time/") for phase in PHASES]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(PHASES))]
    axes.stackplot([line["tokens"] for line in told], shares, labels=names, colors=colours, alpha=0.8)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(title="time by phase", ylim=(0, 1))
    axes.legend(fontsize=7, loc="lower right")
