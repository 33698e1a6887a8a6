"""Differences between two arms over the runs that share size and seed, and what they allow to say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from latentpt.intervals import student_quantile

Losses = Mapping[tuple[int, int], float]
"""(size, seed) -> loss."""


class Paired(NamedTuple):
    """Mean difference of an arm from the baseline over sizes, and how sure it is."""

    mean: float
    """Nats per token, negative where the arm is better."""
    error: float | None
    """Its standard error by the spread between seeds; None with a single one."""
    freedom: int
    """Degrees of freedom of that spread."""
    sizes: int
    """Sizes with a shared run."""
    seeds: int
    """Seeds of the size that has most."""

    def margin(self, confidence: float) -> float | None:
        """Half of the width of the interval of that confidence."""
        return None if self.error is None else student_quantile(confidence, self.freedom) * self.error


def paired(base: Losses, arm: Losses) -> Paired | None:
    """The mean over sizes of the arm's loss minus the baseline's of the same size and seed; None where none is shared.

    Each size has its own difference; what seeds spread around it is pooled over sizes.
    """
    by_size: dict[int, list[float]] = {}
    for key in base:
        if key in arm:
            by_size.setdefault(key[0], []).append(arm[key] - base[key])
    if not by_size:
        return None
    groups = [np.array(group) for group in by_size.values()]
    mean = float(np.mean([group.mean() for group in groups]))
    freedom = sum(len(group) - 1 for group in groups)
    error = None
    if freedom:
        variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom
        error = math.sqrt(variance * sum(1 / len(group) for group in groups)) / len(groups)
    return Paired(mean, error, freedom, len(groups), max(map(len, groups)))


def seed_deviation(losses: Losses) -> tuple[float, int] | None:
    """Standard deviation of a run's loss between seeds, pooled over sizes, and its degrees of freedom; None with one seed."""
    by_size: dict[int, list[float]] = {}
    for (size, _), loss in losses.items():
        by_size.setdefault(size, []).append(loss)
    freedom = sum(len(group) - 1 for group in by_size.values())
    if not freedom:
        return None
    squares = sum(((np.array(group) - np.mean(group)) ** 2).sum() for group in by_size.values())
    return math.sqrt(squares / freedom), freedom
