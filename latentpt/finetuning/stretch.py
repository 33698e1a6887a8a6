"""A padded batch that is thought about piece by piece: the core's state, and the layer that a fill reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from latentpt.thoughts.method import Tokens
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Stretch
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.state import Cache, State
from latentpt.thoughts.watch import Watch


class Thinking:
    """The positions thought about so far, and how to go on."""

    def __init__(
        self, model: LanguageModel, schedule: Schedule, block: int | None = None, state: State | None = None
    ) -> None:
        """`block` names the block whose output is wanted besides the last state; `state` is empty by default."""
        self.model, self.schedule, self.block = model, schedule, block
        self.state = model.state(schedule.slots) if state is None else state

    def run(self, tokens: Tokens, alive: Tensor, holes: bool) -> tuple[Tensor, Tensor]:
        """Think about tokens [B, n]; where there are `holes`, those not `alive` [B, n] are seen by nobody.

        Returns h(t, N) after the final norm and the state of the block asked for, each [B, n, d].
        """
        if holes:
            tokens = tokens._replace(alive=alive.long() * self.schedule.slots)
        with self._block_output() as (watch, seen):
            hidden = self.model.read(tokens, self.schedule, self.state, watch)[-1].hidden
        return hidden, torch.cat(seen, dim=1) if seen else hidden

    @contextmanager
    def _block_output(self) -> Iterator[tuple[Watch, list[Tensor]]]:
        """Inside, the wanted block's output of the last slot is noted, [B, n, d] of every stretch."""
        seen: list[Tensor] = []
        watch = _Stretches(seen)
        if self.block is None:
            yield watch, seen
            return

        def note(module: Any, arguments: Any, found: Any) -> None:
            seen[watch.number :] = [found[0][:, :, -1]]  # of several runs in a stretch the last one counts

        handle = self.model.decoder.blocks[self.block].register_forward_hook(note)
        try:
            yield watch, seen
        finally:
            handle.remove()


class _Stretches(Watch):
    """Counts stretches."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen, self.number = seen, 0

    def begin(self, stretch: Stretch, first: int) -> None:
        """The ones before have left their outputs."""
        self.number = len(self.seen)


def room(model: LanguageModel, rows: int, capacity: int) -> Cache:
    """An empty state with room for `capacity` columns, padding included, which takes up no positions."""
    like = next(model.parameters())
    return Cache(model.method.traits(), model.config, rows, capacity, like)
