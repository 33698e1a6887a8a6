"""Bootstrap: the same fit to losses that the law and the spread of the runs around it could as well have brought.

A wild bootstrap with leverage: every run keeps its size and its tokens; its deviation from the law, made larger by what
the law bends to it, gets a random sign. Runs of different arms that share a size, a budget and a seed share the sign,
for they share initial weights and the order of the data: so differences between arms keep what pairing brings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentpt.compare.fits.law import Fit, jacobian, log_loss, solve
from latentpt.compare.fits.projection import Floats

CONFIDENCE = 0.9
AT_ONCE = 4000


class Interval(NamedTuple):
    """A value between two bounds; infinite where a law never reaches the loss."""

    value: float
    low: float
    high: float


def interval(value: float, draws: Floats) -> Interval:
    """The middle 90 % of bootstrap draws [k] around the fitted value; infinite draws count as larger than all others."""
    tail = (1 - CONFIDENCE) / 2
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Interval(value, -np.inf, np.inf)
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    return Interval(value, float(low), float(high))


def signs(blocks: NDArray[np.int64], count: int, generator: np.random.Generator) -> Floats:
    """Random signs [count, n] of runs [n], equal in a block."""
    drawn = generator.integers(0, 2, (count, int(blocks.max()) + 1))
    return np.where(drawn[:, blocks], 1.0, -1.0)


def redraw(fit: Fit, sign: Floats) -> Floats:
    """Losses [k, n] with the deviations from the law under the signs [k, n]."""
    value, slopes = jacobian(fit.theta[None], fit.design)
    residual = np.log(fit.loss) - value[0]
    return np.exp(value + residual / (1 - leverage(slopes[0])) * sign)


def leverage(slopes: Floats) -> Floats:
    """How far the fit bends to each run: the diagonal of the projection on the slopes [n, p], at most 0.9."""
    basis, _ = np.linalg.qr(slopes)
    return np.minimum((basis**2).sum(1), 0.9)


def refit(fit: Fit, losses: Floats) -> Floats:
    """Laws [k, p] fitted to rows of losses [k, n], from the law that was fitted to the measured ones."""
    parts = np.array_split(losses, -(-len(losses) // AT_ONCE))
    return np.concatenate(
        [solve(np.tile(fit.theta, (len(part), 1)), fit.design, part, fit.delta) for part in parts]
    )


def bootstrap(fit: Fit, sign: Floats) -> Floats:
    """Laws [k, p] fitted to redrawn losses."""
    return refit(fit, redraw(fit, sign))


def spread(fit: Fit) -> float:
    """Standard deviation of the runs around the law, in log loss: relative for small ones."""
    residual = log_loss(fit.theta[None], fit.design)[0] - np.log(fit.loss)
    return float(np.sqrt((residual**2).sum() / max(len(residual) - len(fit.theta), 1)))
