"""Somebody who looks on while a plan is executed, and may change what goes in or end sweeps early."""

from __future__ import annotations

from torch import Tensor

from latentpt.thoughts.plan import Column, Step, Stretch
from latentpt.thoughts.state import Before


class Watch:
    """Looks on while a plan is executed. Every method does nothing until a subclass fills it."""

    every_slot = False
    """Whether the streams of all slots of the last sweep are wanted, not only of the one that predicts."""

    def begin(self, stretch: Stretch, first: int) -> None:
        """A stretch begins at a position."""

    def carried(self, step: Step, column: Column, before: Before) -> Before:
        """What a column of a step is fed from earlier positions; what is returned goes in."""
        return before

    def inject(self, step: Step, slots: range, u: Tensor) -> Tensor:
        """Inputs [B, L, n, d] made for slots of a step; what is returned goes in."""
        return u

    def attended(self, step: Step, layer: int, q: Tensor, k: Tensor) -> None:
        """Rotated q [B, L, R, H, D] and k [B, L, S, H_kv, D] of a step in a layer."""

    def enough(self, sweep: int) -> bool:
        """Asked after every sweep: whether those between it and the last one may be left out."""
        return False

    def weighed(self, step: Step, log_weights: Tensor) -> None:
        """Log-weights [B, L, n] of the cells of a step that is about to run, see `latentpt.thoughts.halting`."""

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """A step's inputs [B, L, n, d] and the streams [B, L, R, d] of the columns that are read."""
