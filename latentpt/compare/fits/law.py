"""The law L(N, D) = E + A N^-a + B D^-b, fitted with Huber loss in log space (Hoffmann et al. 2022, arXiv 2203.15556).

N counts parameters of which some are run r times for a token: N = N_once + r^phi N_repeated (arXiv 2604.21106). phi = 0
says that running them again is worth nothing, phi = 1 that it is worth as many more parameters. Without phi N is the sum.

Many fits are done at once: of one design to k rows of losses, k starts, or both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentpt.compare.fits.projection import EXPONENTS, Floats, project

LOG_E, LOG_A, ALPHA, LOG_B, BETA, PHI = range(6)
PHIS = (-1.0, 2.0)
STEPS = 60
ROUNDS = 10
TUNING = 1.345  # Huber's constant: 95 % efficient where the noise is normal


class Design(NamedTuple):
    """What decides the loss of n runs, each [n]."""

    once: Floats
    """Parameters run once for a token."""
    repeated: Floats
    """Parameters run `times` times."""
    times: Floats
    """How often they are run."""
    tokens: Floats
    """Training tokens."""

    @classmethod
    def plain(cls, parameters: Floats, tokens: Floats) -> Design:
        """Runs whose parameters are all counted once."""
        return cls(parameters, np.zeros_like(parameters), np.ones_like(parameters), tokens)


class Fit(NamedTuple):
    """A law and what it was fitted to."""

    theta: Floats
    """(log E, log A, a, log B, b) and, where it was fitted, phi: [p]."""
    design: Design
    """The runs."""
    loss: Floats
    """Their losses [n]."""
    delta: float
    """Width of the quadratic part of the Huber loss, in log loss."""


def log_loss(theta: Floats, design: Design) -> Floats:
    """log L of laws [k, p] at n runs: [k, n]."""
    return np.logaddexp.reduce(_terms(theta, design)[0], axis=0)


def _terms(theta: Floats, design: Design) -> tuple[Floats, Floats, Floats]:
    """log of the three terms [3, k, n], log N [k, n] and the share of N that is repeated [k, n]."""
    column = theta[..., None]
    phi = column[..., PHI, :] if theta.shape[-1] > PHI else 0.0
    repeated = design.repeated * np.exp(phi * np.log(design.times))
    size = design.once + repeated
    parts = np.broadcast_arrays(
        column[..., LOG_E, :] + 0 * size,
        column[..., LOG_A, :] - column[..., ALPHA, :] * np.log(size),
        column[..., LOG_B, :] - column[..., BETA, :] * np.log(design.tokens),
    )
    return np.stack(parts), np.broadcast_to(np.log(size), parts[0].shape), repeated / size


def jacobian(theta: Floats, design: Design) -> tuple[Floats, Floats]:
    """log L [k, n] and its derivatives [k, n, p]."""
    terms, log_size, share = _terms(theta, design)
    total = np.logaddexp.reduce(terms, axis=0)
    e, a, b = np.exp(terms - total)
    columns = [e, a, -a * log_size, b, -b * np.log(design.tokens)]
    if theta.shape[-1] > PHI:
        columns.append(-a * theta[:, ALPHA, None] * share * np.log(design.times))
    return total, np.stack(columns, axis=-1)


def solve(start: Floats, design: Design, loss: Floats, delta: float) -> Floats:
    """Laws [k, p] at which the summed Huber loss of log L has its minimum next to `start` [k, p]; loss [k, n] or [n].

    Levenberg and Marquardt's steps on reweighted squares, all rows at once. Exponents stay in `EXPONENTS`.
    """
    # Centred logarithms: otherwise log A and a are all but the same direction.
    middle = np.log(design.once + design.repeated).mean(), np.log(design.tokens).mean()
    scaled = Design(
        design.once / np.exp(middle[0]),
        design.repeated / np.exp(middle[0]),
        design.times,
        design.tokens / np.exp(middle[1]),
    )
    theta = _shifted(start, middle, -1)
    target = np.broadcast_to(np.log(loss), (len(theta), len(design.tokens)))
    damping = np.full(len(theta), 1e-3)
    cost = _huber(log_loss(theta, scaled) - target, delta)
    active = np.arange(len(theta))
    for _ in range(STEPS):
        here, y = theta[active], target[active]
        value, slopes = jacobian(here, scaled)
        residual = value - y
        weight = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        weighted = slopes * weight[..., None]
        square = np.matmul(weighted.swapaxes(1, 2), slopes)
        gradient = np.matmul(weighted.swapaxes(1, 2), residual[..., None])[..., 0]
        ridge = square.diagonal(axis1=1, axis2=2) * damping[active, None] + 1e-12
        square[:, range(square.shape[1]), range(square.shape[1])] += ridge
        new = _bounded(here - np.linalg.solve(square, gradient[..., None])[..., 0])
        after = _huber(log_loss(new, scaled) - y, delta)
        better = after < cost[active]
        gain = (cost[active] - after) / np.maximum(cost[active], 1e-300)
        rows = active[better]
        theta[rows], cost[rows] = new[better], after[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4)
        active = active[np.where(better, gain > 1e-9, damping[active] < 1e6)]
        if not len(active):
            break
    return _shifted(theta, middle, 1)


def _shifted(theta: Floats, middle: tuple[float, float], sign: int) -> Floats:
    """The laws with N and D in other units: sizes divided by exp(middle) where sign is -1, multiplied where it is 1."""
    moved = theta.copy()
    moved[:, LOG_A] += sign * theta[:, ALPHA] * middle[0]
    moved[:, LOG_B] += sign * theta[:, BETA] * middle[1]
    return moved


def _bounded(theta: Floats) -> Floats:
    theta[:, [ALPHA, BETA]] = theta[:, [ALPHA, BETA]].clip(*EXPONENTS)
    theta[:, [LOG_E, LOG_A, LOG_B]] = theta[:, [LOG_E, LOG_A, LOG_B]].clip(-20, 20)
    theta[:, PHI:] = theta[:, PHI:].clip(*PHIS)
    return theta


def _huber(residual: Floats, delta: float) -> Floats:
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum(-1)


def fit_law(design: Design, loss: Floats, recurrence: bool = False) -> Fit | None:
    """The law that fits n runs best; None where there are not more runs, sizes and lengths than it can bend to.

    Starts at the variable projection of the same runs. The quadratic part of the Huber loss is as wide as the spread of
    its residuals says, so that what is no outlier counts as in least squares. `recurrence` fits phi too.
    """
    size = design.once + design.repeated
    enough = len(np.unique(size.round())) >= 3 and len(np.unique(np.log(design.tokens).round(2))) >= 3
    if len(loss) < 6 + recurrence or not enough or (recurrence and np.ptp(design.times) == 0):
        return None
    start = project(size, design.tokens, loss)
    starts = np.array([[*start, phi] for phi in (0.0, 0.5, 1.0)]) if recurrence else start[None]
    squares = solve(starts, design, loss, delta=1e3)
    residual = log_loss(squares, design) - np.log(loss)
    theta = squares[np.argmin((residual**2).sum(1))]
    delta = np.inf
    for _ in range(ROUNDS):  # a run gone wrong widens the spread of squares, and little by little no more
        before, delta = delta, scale(theta, design, loss)
        theta = solve(theta[None], design, loss, delta)[0]
        if delta > 0.99 * before:
            break
    return Fit(theta, design, loss, delta)


def scale(theta: Floats, design: Design, loss: Floats) -> float:
    """Width of the quadratic part for the spread of the runs around a law: by the median of its residuals, without the p
    smallest, which a law of p parameters can bring to zero."""
    residual = np.sort(np.abs(log_loss(theta[None], design)[0] - np.log(loss)))
    return float(max(TUNING * np.median(residual[len(theta) :]) / 0.6745, 1e-5))
