"""Means with their standard errors, and the intervals in which chance alone would leave them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean over independent items."""

    value: float
    error: float | None
    """Its standard error; None from a single item, which says nothing about it."""
    items: int
    """How many there were."""

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean lies with 95 % confidence (Student); everywhere, from a single item."""
        if self.error is None:
            return -math.inf, math.inf
        half = student_quantile(CONFIDENCE, self.items - 1) * self.error
        return self.value - half, self.value + half

    def __format__(self, spec: str) -> str:
        """`0.41 ± 0.02`: the value, in the form asked for or as finely as its error allows, and the error."""
        sign = "+" if spec.startswith("+") else ""
        digits = spec.lstrip("+") or f".{digits_of(self.error)}f"
        value = format(self.value, sign + digits)
        return value if self.error is None else f"{value} ± {format(self.error, digits)}"


def digits_of(error: float | None) -> int:
    """Digits behind the point that show two of an error's, from 2 to 6; 4 where there is none."""
    if not error:
        return 4
    return min(max(1 - math.floor(math.log10(error)), 2), 6)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean of one value an item."""
    return ratio_of(values, [1.0] * len(values))


def ratio_of(sums: Sequence[float], counts: Sequence[float]) -> Mean:
    """Sum over count of items that bring a sum and a count each, such as nats and tokens.

    The error is that of a ratio estimator (Cochran, Sampling Techniques, 2.11): from the items' s - ratio * c.
    """
    s, c = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    ratio = float(s.sum() / c.sum())
    if len(s) < 2:
        return Mean(ratio, None, len(s))
    rest = float(((s - ratio * c) ** 2).sum())
    return Mean(ratio, math.sqrt(rest * len(s) / (len(s) - 1)) / float(c.sum()), len(s))


@cache
def student_quantile(confidence: float, freedom: int) -> float:
    """The t that a Student variable of `freedom` degrees exceeds in size with probability 1 - confidence.

    With t = sqrt(freedom) tan(a) the density of the angle a is proportional to cos(a) ** (freedom - 1).
    """
    angle = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, below / below[-1], angle)))
