"""Refinements that follow what they are needed for: K from the residual, read late so that nobody waits for it."""

from __future__ import annotations

from torch import Tensor

from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.schedule import Schedule

DELAY = 2
"""Steps between measuring and using a residual: the device works on one step while the host reads the one before."""


class AdaptiveRefinements:
    """The smallest K whose last refinement moved the latents by less than `thoughts.residual_target`.

    A run measures only the refinements it makes, so K grows by one when none of them was small enough. `refinements` and
    `pending` are the whole state.
    """

    def __init__(self, method: ThoughtMethod, refinements: int | None, pending: list[list[float]]) -> None:
        self.method = method
        self.refinements = refinements
        self.pending: list[Tensor | list[float]] = list(pending)

    def schedule(self, step: int) -> Schedule:
        """The schedule of a step, from the residuals of DELAY steps before."""
        slots, (low, high) = self.method.config.phase(step)
        current = high if self.refinements is None else self.refinements
        if len(self.pending) == DELAY:
            current = self._smallest(_values(self.pending.pop(0)), current)
        self.refinements = min(max(current, low), high)
        return self.method.schedule(self.refinements, slots)

    def observe(self, residuals: Tensor) -> None:
        """Note the residuals [K] of the step just made, equal on all ranks, still on the device."""
        self.pending.append(residuals)

    def state(self) -> tuple[int | None, list[list[float]]]:
        """What a checkpoint keeps; waits for the device."""
        return self.refinements, [_values(entry) for entry in self.pending]

    def _smallest(self, residuals: list[float], current: int) -> int:
        target = self.method.config.residual_target
        assert target is not None
        small = (k for k, residual in enumerate(residuals, start=1) if residual < target)
        return next(small, current + 1)


def _values(entry: Tensor | list[float]) -> list[float]:
    return entry.tolist() if isinstance(entry, Tensor) else entry
