"""Refinements that follow what they are needed for: K from the residuals of the step before."""

from __future__ import annotations

from collections.abc import Sequence

from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.schedule import Schedule


class AdaptiveRefinements:
    """The smallest K whose last refinement moved the latents by less than `thoughts.residual_target`.

    A run measures only the refinements it makes, so K grows by one when none of them was small enough. `refinements`, the K
    of the coming step (None before the first), is the whole state. Reading residuals waits for nothing that a step does not
    wait for anyway: it ends with the question whether its gradient was finite.
    """

    def __init__(self, method: ThoughtMethod, refinements: int | None) -> None:
        self.method = method
        self.refinements = refinements

    def schedule(self, step: int) -> Schedule:
        """The schedule of a step."""
        slots, (low, high) = self.method.config.phase(step)
        current = high if self.refinements is None else self.refinements
        self.refinements = min(max(current, low), high)
        return self.method.schedule(self.refinements, slots)

    def observe(self, residuals: Sequence[float]) -> None:
        """Let the residuals [K] of the step just made, equal on all ranks, decide on the next one."""
        target = self.method.config.residual_target
        assert target is not None and self.refinements is not None  # a step was made
        small = (k for k, residual in enumerate(residuals, start=1) if residual < target)
        self.refinements = next(small, self.refinements + 1)
