"""What is looked at while a training forward runs: the time of every pass, what refinements move, how large latents are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentpt.thoughts.plan import Column, Step, Stretch
from latentpt.thoughts.residuals import Residuals
from latentpt.thoughts.watch import Watch


class Passes(Watch):
    """Says `spent("pass/k")` when the work of a forward's k-th pass (from 1) has been given out."""

    def __init__(self, spent: Callable[[str], None]) -> None:
        self._spent = spent

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """A step of a pass."""
        self._spent(f"pass/{step.sweep + 1}")


class Measured(Residuals):
    """Residuals, and the root mean square of what every slot that is fed a state read in the last sweep over it."""

    def __init__(self, spent: Callable[[str], None]) -> None:
        super().__init__()
        self._passes = Passes(spent)
        self._latest: dict[int, Tensor] = {}
        self._squares: dict[int, list[Tensor]] = {}

    def begin(self, stretch: Stretch, first: int) -> None:
        """The stretch before has come to its last sweep."""
        super().begin(stretch, first)
        self._settle()

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """Note the pass, then what Residuals note."""
        super().ran(step, u, x)
        self._passes.ran(step, u, x)

    @torch.no_grad()
    def compare(self, step: Step, column: Column, now: Tensor) -> None:
        """Note the size of what a column of a slot reads."""
        super().compare(step, column, now)
        self._latest[column.slot] = now.detach().float().square().mean()

    def _settle(self) -> None:
        for slot, square in self._latest.items():
            self._squares.setdefault(slot, []).append(square)
        self._latest.clear()

    def norms(self) -> dict[int, Tensor]:
        """Root mean square per slot over everything seen, float32 scalars on the device; empty where nothing is fed."""
        self._settle()
        return {slot: torch.stack(found).mean().sqrt() for slot, found in sorted(self._squares.items())}
