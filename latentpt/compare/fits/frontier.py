"""What a law costs: the lowest loss for a budget, the least cost of a loss, and the multiplier of one law over another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentpt.compare.fits.law import ALPHA, BETA, LOG_A, LOG_B, LOG_E
from latentpt.compare.fits.projection import Floats

GRID = 240
BEYOND = 4.0  # sizes are searched this far beyond the measured ones


class Costs(NamedTuple):
    """FLOPs per token of an arm at its sizes, each [sizes], growing."""

    parameters: Floats
    training: Floats
    inference: Floats

    def grid(self) -> Costs:
        """The same on many sizes, interpolated in logarithms, and beyond the measured ones by the slope at the end."""
        log_n = np.log(self.parameters)
        sizes = np.linspace(log_n[0] - np.log(BEYOND), log_n[-1] + np.log(BEYOND), GRID)
        return Costs(np.exp(sizes), *(np.exp(_extended(sizes, log_n, np.log(y))) for y in self[1:]))


def _extended(x: Floats, known_x: Floats, known_y: Floats) -> Floats:
    """Linear interpolation that goes on with the first and the last slope."""
    if len(known_x) == 1:
        return known_y + (x - known_x)
    slopes = np.diff(known_y) / np.diff(known_x)
    inside = np.interp(x, known_x, known_y)
    return inside + np.minimum(x - known_x[0], 0) * slopes[0] + np.maximum(x - known_x[-1], 0) * slopes[-1]


class Point(NamedTuple):
    """The cheapest way to something, for k laws: each [k]."""

    cost: Floats
    """FLOPs, infinite where the law never reaches the loss."""
    loss: Floats
    """Nats per token."""
    parameters: Floats
    """The size that is cheapest."""
    inference: Floats
    """Its FLOPs per decoded token."""


def frontier(theta: Floats, costs: Costs, flops: float) -> Point:
    """The lowest loss of laws [k, p] that `flops` of training reach, over sizes."""
    grid = costs.grid()
    losses = np.exp(theta[:, LOG_E, None]) + _size_term(theta, grid)
    losses += np.exp(theta[:, LOG_B, None] - theta[:, BETA, None] * np.log(flops / grid.training))
    loss, parameters, inference = _lowest(losses, grid)
    return Point(np.full(len(theta), flops), loss, parameters, inference)


def least_cost(theta: Floats, costs: Costs, loss: Floats, served: float = 0.0) -> Point:
    """The fewest FLOPs with which laws [k, p] reach losses [k]: training, and decoding `served` tokens afterwards."""
    grid = costs.grid()
    room = loss[:, None] - np.exp(theta[:, LOG_E, None]) - _size_term(theta, grid)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        tokens = np.exp((theta[:, LOG_B, None] - np.log(room)) / theta[:, BETA, None])
    flops = np.where(room > 0, tokens, np.inf) * grid.training + served * grid.inference
    cost, parameters, inference = _lowest(flops, grid)
    return Point(cost, loss, parameters, inference)


def _lowest(values: Floats, grid: Costs) -> tuple[Floats, Floats, Floats]:
    """Lowest of values [k, grid], the size where it is and its FLOPs per decoded token, each [k].

    Between the points of the grid by the parabola through the lowest and its neighbours, where all three are finite.
    """
    rows, best = np.arange(len(values)), values.argmin(1)
    inner = best.clip(1, values.shape[1] - 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, middle, right = (values[rows, inner + step] for step in (-1, 0, 1))
        shift = (left - right) / (left - 2 * middle + right) / 2
        shift = np.where(np.isfinite(shift) & (inner == best), shift, 0.0).clip(-0.5, 0.5)
        value = np.where(shift != 0, middle - (left - right) * shift / 4, values[rows, best])
    place = best + shift
    points = np.arange(values.shape[1])
    return value, *(np.exp(np.interp(place, points, np.log(y))) for y in (grid.parameters, grid.inference))


def _size_term(theta: Floats, grid: Costs) -> Floats:
    return np.exp(theta[:, LOG_A, None] - theta[:, ALPHA, None] * np.log(grid.parameters))


class Multipliers(NamedTuple):
    """How many times the FLOPs of an arm the baseline needs for the same loss, for k laws: each [k]; above 1 the arm wins."""

    training: Floats
    """Training FLOPs, both at their best size."""
    inference: Floats
    """FLOPs per decoded token at those sizes."""
    lifetime: dict[float, Floats]
    """Tokens served -> training and serving together, both at the size that is best for it."""


def multipliers(
    base: Floats, base_costs: Costs, arm: Floats, arm_costs: Costs, flops: float, served: list[float]
) -> Multipliers:
    """Multipliers at the loss that the arm [k, p] reaches with `flops` of training at its best size."""
    ours = frontier(arm, arm_costs, flops)
    theirs = least_cost(base, base_costs, ours.loss)
    lifetime = {
        tokens: _ratio(
            least_cost(base, base_costs, ours.loss, tokens).cost,
            least_cost(arm, arm_costs, ours.loss, tokens).cost,
        )
        for tokens in served
    }
    decoding = np.where(np.isfinite(theirs.cost), theirs.inference / ours.inference, np.inf)
    return Multipliers(theirs.cost / flops, decoding, lifetime)


def _ratio(base: Floats, arm: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(base), base / arm, np.inf)


def size_exponent(theta: Floats) -> Floats:
    """The a of N ~ C^a along the frontier of laws [k, p], if FLOPs per token are in proportion to N."""
    return theta[:, BETA] / (theta[:, ALPHA] + theta[:, BETA])
