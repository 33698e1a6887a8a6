"""Means, spreads, and when a difference between two arms is more than the spread of seeds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from latentpt.intervals import CONFIDENCE, student_quantile


class Estimate(NamedTuple):
    """Mean over seeds and standard deviation between them (None with a single seed)."""

    mean: float
    deviation: float | None
    seeds: int = 1

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.seeds)

    def __format__(self, spec: str) -> str:
        mean = format(self.mean, spec)
        return mean if self.deviation is None else f"{mean} ± {format(self.deviation, spec.lstrip('+'))}"


def estimate(values: list[float]) -> Estimate:
    """Mean and sample standard deviation of one value per seed."""
    return Estimate(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values)
    )


def smallest_difference(losses: np.ndarray) -> float | None:
    """Difference of two arms' means above which chance between seeds is unlikely (5 % over all comparisons together).

    losses [arms, seeds]: each seed is a block, since it gives all arms the same data order; what remains after arm and
    seed means is the noise, pooled over arms. Every arm is compared with the reference once (Bonferroni). None when
    there is a single seed or a single arm: then nothing is known about the noise.
    """
    arms, seeds = losses.shape
    freedom = (arms - 1) * (seeds - 1)
    if freedom == 0:
        return None
    noise = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean()
    deviation = math.sqrt(float((noise**2).sum()) / freedom)
    quantile = student_quantile(1 - (1 - CONFIDENCE) / (arms - 1), freedom)
    return quantile * deviation * math.sqrt(2 / seeds)
