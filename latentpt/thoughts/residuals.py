"""How far each sweep moved the latents: the solver's own measure of how near it is."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpt.thoughts.execute import Watch
from latentpt.thoughts.plan import Step, Stretch


class Residuals(Watch):
    """|z_k - z_(k-1)| / |z_k| of what slots read that are fed a state, over everything solved since it was made."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}
        self.before: dict[int, Tensor] = {}  # slot -> what it read last, [B, L, d]
        self.length = 0

    def begin(self, stretch: Stretch, first: int) -> None:
        """Nothing of this stretch is known."""
        self.before, self.length = {}, stretch.length

    @torch.no_grad()
    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """Compare what slots read with what they read a sweep before."""
        for index, (first, every, slot) in enumerate(step.columns):
            if step.fed[index] is None:
                continue
            rows, now = slice(first, None, every), u[:, :, index].detach()
            before = self.before.get(slot)
            if before is None:
                before = now.new_zeros(now.shape[0], self.length, now.shape[-1])
            if step.refines:
                self.add(step.sweep, now, before[:, rows])
            self.before[slot] = before.clone()
            self.before[slot][:, rows] = now

    def add(self, sweep: int, now: Tensor, before: Tensor) -> None:
        """Note the latents [B, L, d] that a sweep read and those that the sweep before it read."""
        moved, size = (now - before).float().square().sum(), now.float().square().sum()
        old = self.sums.get(sweep)
        self.sums[sweep] = (moved, size) if old is None else (old[0] + moved, old[1] + size)

    def values(self) -> Tensor:
        """One value per refinement, float32, on the device; empty if nothing was refined."""
        ratios = [(moved / size).sqrt() for _, (moved, size) in sorted(self.sums.items())]
        return torch.stack(ratios) if ratios else torch.empty(0)
