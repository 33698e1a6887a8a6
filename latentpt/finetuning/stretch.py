"""The recurrence of thoughts over a padded batch, stretch after stretch.

This is the seam to the core: keys and values of what ran stay, and each call thinks about further columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from latentpt.modeling.decoder import KeysValues
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.solvers import Stretch, _append


class Thinking:
    """A batch that is thought about piece by piece."""

    def __init__(self, model: LanguageModel, schedule: Schedule, block: int | None = None) -> None:
        """`block` names the block whose output is wanted besides the last state."""
        self.model, self.schedule, self.block = model, schedule, block
        self.kept: KeysValues = []
        self.alive: Tensor | None = None

    def run(self, tokens: Tokens, alive: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
        """Think about tokens [B, n], of which those not `alive` [B, n] are seen by nobody.

        Returns h(t, N) after the final norm and the state of the block asked for, each [B, n, d].
        """
        length = tokens.ids.shape[1]
        chunk = self.schedule.chunk or length
        pieces = [
            self._chunk(tokens.at(slice(start, start + chunk)), alive[:, start : start + chunk], padded)
            for start in range(0, length, chunk)
        ]
        hidden = self.model.decoder.norm(torch.cat([x for x, _ in pieces], dim=1))
        layered = hidden if self.block is None else torch.cat([seen for _, seen in pieces], dim=1)
        return hidden, layered

    def _chunk(self, tokens: Tokens, alive: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
        decoder, method = self.model.decoder, self.model.method
        if padded:
            tokens = tokens._replace(documents=alive.long())
        stretch = Stretch(decoder, method, tokens, self.kept, documents_before=self.alive if padded else None)
        with self._watched() as seen:
            cells = stretch.solve(self.schedule.sweeps, keep=True)
        self.kept = _append(self.kept, cells.kv)
        now = alive.long()
        self.alive = now if self.alive is None else torch.cat([self.alive, now], dim=1)
        x = cells.x[:, :, -1]
        return x, seen[-1] if seen else x

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        """Inside, outputs of the wanted block's last slot [B, n, d] are noted."""
        seen: list[Tensor] = []
        if self.block is None:
            yield seen
            return

        def note(module: Any, arguments: Any, found: Any) -> None:
            seen.append(found[0][:, :, -1])

        handle = self.model.decoder.blocks[self.block].register_forward_hook(note)
        try:
            yield seen
        finally:
            handle.remove()
