"""Sweep until nothing moves: a schedule of many sweeps that ends early, for prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpt.thoughts.plan import Column, Step, Stretch
from latentpt.thoughts.schedule import Schedule, gauss_seidel, jacobi
from latentpt.thoughts.state import Before
from latentpt.thoughts.watch import Watch


def until_settled(
    slots: int, slot_by_slot: bool, tolerance: float, most: int, chunk: int | None = None
) -> tuple[Schedule, Settled]:
    """At most `most` sweeps over all slots, slot by slot or all cells at once, and who says when they are enough."""
    sweeps = gauss_seidel(slots, most) if slot_by_slot else jacobi(slots, most - 1)
    return Schedule(sweeps.sweeps, chunk), Settled(slots - 1, tolerance)


class Settled(Watch):
    """Sweeps are enough when the input of no position's last slot moves by more than a share `tolerance` of its size.

    Where there is one slot it is what is carried into it that must not move.
    """

    def __init__(self, slot: int, tolerance: float) -> None:
        self.slot, self.tolerance = slot, tolerance
        self.before: Tensor | None = None
        self.moved = float("inf")
        self.sweeps = 0
        """Sweeps over all slots of the last stretch, the one that reads included."""

    def begin(self, stretch: Stretch, first: int) -> None:
        """Nothing of this stretch is known."""
        self.before, self.moved, self.sweeps = None, float("inf"), 1

    def carried(self, step: Step, column: Column, before: Before) -> Before:
        """Note how far what is carried has moved."""
        if self.slot == 0:
            self.note(before.states)
        return before

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """Note how far the last slot's input has moved."""
        if self.slot and step.columns[-1].slot == self.slot:
            self.note(u[:, :, -1])

    def note(self, now: Tensor) -> None:
        """Compare with the sweep before; what is zero has not moved."""
        if self.before is not None:
            sizes = now.norm(dim=-1).clamp(min=torch.finfo(now.dtype).tiny)
            self.moved = ((now - self.before).norm(dim=-1) / sizes).max().item()
        self.before = now

    def enough(self, sweep: int) -> bool:
        """Whether the sweep that reads may come next."""
        self.sweeps += 1
        return self.moved < self.tolerance
