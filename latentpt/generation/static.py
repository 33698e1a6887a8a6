"""Decoding with the length on the device: one step serves every position, so that CUDA can record it once.

`latentpt.thoughts.execute` runs the same plan as ever. What differs is the cache: where a cell is written, and up to where
it is seen, are tensors and not slices. A layer whose weights the kernels know runs as one call of
`latentpt_kernels.decode_layer`, see `latentpt.modeling.decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from latentpt_kernels.decode import Place
from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Column, Traits
from latentpt.thoughts.state import Cache


def why_not_static(model: LanguageModel) -> str | None:
    """Why the model's step cannot be one that serves every position; None if it can."""
    traits = model.method.traits()
    if traits.mixes or traits.weighed:
        return "tokens think different numbers of slots"
    for layer in range(traits.layers):
        for slot in traits.grid(layer):
            seen = _seen(traits, layer, slot)
            if seen != list(range(seen[0], seen[-1] + 1)):
                return f"slot {slot} sees the slots {seen}, which do not lie side by side"
    return None


def _seen(traits: Traits, layer: int, slot: int) -> list[int]:
    """The slots of a layer that a slot sees."""
    return [other for other in traits.grid(layer) if traits.visibility.sees(slot, other)]


class StaticCache(Cache):
    """A cache that counts its positions on the device; the host counts along, for what it decides itself."""

    def __init__(self, traits: Traits, config: ModelConfig, rows: int, capacity: int, like: Tensor) -> None:
        self.at = torch.zeros(1, dtype=torch.int32, device=like.device)
        """Positions thought through."""
        self._counted = 0
        self._cells: dict[tuple[int, int, int], Tensor] = {}
        super().__init__(traits, config, rows, capacity, like)
        self.last = Kept()
        for room in (tensor for pair in self.tensors for tensor in pair):
            room.zero_()  # what lies behind the length is multiplied by a probability of 0

    @property
    def positions(self) -> int:
        """Positions thought through, as the host knows; moving it moves the device's count."""
        return self._counted

    @positions.setter
    def positions(self, value: int) -> None:
        if value != self._counted:
            self.at.add_(value - self._counted)
        self.counted(value)

    def counted(self, positions: int) -> None:
        """The device has moved on by itself."""
        self._counted = positions
        self._cells.clear()

    def place(self, layer: int, columns: Sequence[Column]) -> Tensor:
        """The rows of single cells that follow one another, int32 [n]."""
        return self._cell(layer, columns[0], len(columns))

    def up_to(self, layer: int, column: Column) -> Sequence[Place]:
        """What a single cell sees once it is written, itself included."""
        grid = self.traits.grid(layer)
        seen = _seen(self.traits, layer, column.slot)
        return [Place(self._cell(layer, column), len(grid), (seen[0] - grid[0], seen[-1] + 1 - grid[0]))]

    def _cell(self, layer: int, column: Column, count: int = 1) -> Tensor:
        """Rows of `count` cells from a column's on; made once for all layers alike."""
        grid = self.traits.grid(layer)
        key = len(grid), column.first * len(grid) + column.slot - grid[0], count
        if key not in self._cells:
            cell = self.at * key[0] + key[1]
            if count > 1:
                cell = cell + torch.arange(count, dtype=torch.int32, device=cell.device)
            self._cells[key] = cell
        return self._cells[key]


class Kept(dict[int | None, tuple[Tensor, Tensor]]):
    """Slot -> tensors that stay where they are: what is put in place of others is copied over them."""

    def __setitem__(self, slot: int | None, pair: Any) -> None:
        if slot not in self:
            super().__setitem__(slot, tuple(tensor.clone() for tensor in pair))
            return
        for kept, new in zip(self[slot], [tensor.clone() for tensor in pair], strict=True):
            kept.copy_(new)
