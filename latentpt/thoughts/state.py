"""What stretches of positions leave for those after them: keys and values of all cells, and the last states.

Keys and values lie in the order of thought: in a layer with the slots g, cell (t, s) is row t |g| + (s - g[0]). A `State`
grows by concatenation, through which gradient flows; a `Cache` has its room from the start and is written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from latentpt_kernels.decode import Place
from torch import Tensor

from latentpt.modeling.attention import HIDDEN
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.plan import Column, Traits

KeysValues = tuple[Tensor, Tensor]
"""Keys and values [B, H_kv, n, D] of n cells."""


class Before(NamedTuple):
    """The cells that some cells are fed by."""

    inputs: Tensor
    """What those cells read, [B, L, n, d]."""
    states: Tensor
    """What came of them and is fed back, [B, L, n, d]; zero where there are none."""
    known: Tensor | bool = True
    """Whether there is such a cell, bool [B, L, n, 1]: none where a document begins; False where there are none at all."""
    records: Tensor | None = None
    """Their records [B, L, n, r], where tokens think different numbers of slots, see `latentpt.thoughts.halting`."""


class State:
    """Everything before the next position; empty at first."""

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.positions = 0
        """Positions thought through."""
        self.last: dict[int | None, tuple[Tensor, Tensor]] = {}
        """Slot -> input and state [B, 1, d] of its latest cell, for the slots that feed what comes next; None: the token's
        own stream, twice."""
        self.documents: Tensor | None = None
        """Number of each position's document [B, positions], where documents are kept apart."""
        self.alive: Tensor | None = None
        """Number of slots that each position thought [B, positions], where that differs."""
        self._grown: list[KeysValues | None] = [None] * traits.layers

    def keys_values(self, layer: int) -> KeysValues | None:
        """Everything so far in a layer, [B, H_kv, positions * slots of the layer, D]; None if nothing."""
        return self._grown[layer]

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Add the cells of whole positions."""
        old = self._grown[layer]
        self._grown[layer] = (k, v) if old is None else (torch.cat([old[0], k], 2), torch.cat([old[1], v], 2))

    def before(self, layer: int, slot: int) -> Sequence[slice]:
        """Where in a layer's cells lies what a slot sees of them."""
        grid, sees = self.traits.grid(layer), self.traits.visibility.sees
        seen = [other for other in grid if sees(slot, other)]
        if len(seen) == len(grid):
            return [slice(None)]
        return [slice(other - grid[0], None, len(grid)) for other in seen]


class Cache(State):
    """A state with room for `capacity` positions of `rows` sequences, in one tensor pair a layer."""

    def __init__(self, traits: Traits, config: ModelConfig, rows: int, capacity: int, like: Tensor) -> None:
        super().__init__(traits)

        def room(layer: int) -> Tensor:
            cells = capacity * len(traits.grid(layer))
            return like.new_zeros(rows, config.kv_heads, cells, config.head_width + traits.weighed)

        self.tensors = [(room(layer), room(layer)) for layer in range(traits.layers)]
        self.rewind(0)

    def keys_values(self, layer: int) -> KeysValues | None:
        """The valid part."""
        end = self.positions * len(self.traits.grid(layer))
        k, v = self.tensors[layer]
        return (k[:, :, :end], v[:, :, :end]) if end else None

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write the cells of whole positions."""
        start = self.positions * len(self.traits.grid(layer))
        for room, new in zip(self.tensors[layer], (k, v), strict=True):
            room[:, :, start : start + new.shape[2]] = new

    def rewind(self, positions: int) -> None:
        """Forget everything from a position on."""
        self.positions = positions
        if self.traits.weighed:  # cells that are not thought stay hidden
            for layer, (k, _) in enumerate(self.tensors):
                k[:, :, positions * len(self.traits.grid(layer)) :, -1] = HIDDEN

    def place(self, layer: int, columns: Sequence[Column]) -> slice | Tensor:
        """Where single cells belong that follow one another; int32 [n] in a cache that counts on the device."""
        start = self._row(layer, columns[0])
        return slice(start, start + len(columns))

    def up_to(self, layer: int, column: Column) -> Sequence[slice | Place]:
        """Where lies what a single cell sees once it is written, itself included."""
        row = self._row(layer, column)
        parts = self.before(layer, column.slot)
        if parts == [slice(None)]:
            return [slice(0, row + 1)]
        own = row - column.slot + self.traits.grid(layer)[0]
        return [slice(part.start, own + part.start + 1, part.step) for part in parts]

    def _row(self, layer: int, column: Column) -> int:
        grid = self.traits.grid(layer)
        return (self.positions + column.first) * len(grid) + column.slot - grid[0]
