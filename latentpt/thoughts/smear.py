"""Smear: a plain decoder that adds the stream of the token before where a span of layers begins (speed records' term)."""

from __future__ import annotations

from latentpt.thoughts.plan import Feed
from latentpt.thoughts.shifting import ShiftingMethod


class Smear(ShiftingMethod):
    """u(t) = X(t) + X(t - 1), X the stream before the span: a shift without recurrence, the control of those with one."""

    one_slot = True

    def feeds(self, slots: int) -> tuple[Feed | None, ...]:
        """The token before, not what became of it."""
        return (Feed(1, None),)
