"""How far each sweep moved the latents: the solver's own measure of how near it is."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpt.thoughts.plan import Column, Step, Stretch
from latentpt.thoughts.state import Before
from latentpt.thoughts.watch import Watch


class Residuals(Watch):
    """|z_k - z_(k-1)| / |z_k| of what latent slots read and what is carried in time, over everything solved so far."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}
        self.before: dict[int, Tensor] = {}  # slot -> what it read last, [B, L, d]
        self.length = 0

    def begin(self, stretch: Stretch, first: int) -> None:
        """Nothing of this stretch is known."""
        self.before, self.length = {}, stretch.length

    def carried(self, step: Step, column: Column, before: Before) -> Before:
        """Compare what is carried into a column."""
        self.compare(step, column, before.states[:, :, 0])
        return before

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """Compare what slots read that are fed by their own position."""
        for index, (column, fed) in enumerate(zip(step.columns, step.fed, strict=True)):
            if fed is not None and not fed.feed.back:
                self.compare(step, column, u[:, :, index])

    @torch.no_grad()
    def compare(self, step: Step, column: Column, now: Tensor) -> None:
        """Compare values [B, L, d] of a column with those of the sweep before."""
        (first, every, slot), now = column, now.detach()
        rows, before = slice(first, None, every), self.before.get(slot)
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
