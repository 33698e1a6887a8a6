"""The static slot cache: keys and values of all cells decoded so far, written in place, in the order of thought.

Per layer one tensor pair [B, H_kv, capacity * S, D] whose third axis is the flat cell index i = t S + s. What a slot
sees of it is a view: everything under causal visibility, every S-th row where slots see only some slots.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from latentpt.modeling.decoder import KeysValues
from latentpt.modeling.merge import KeyBlock, Relation
from latentpt.thoughts.model import LanguageModel


class SlotCache:
    """Keys and values of a batch that decodes in step; the first `filled` cells are valid."""

    def __init__(self, model: LanguageModel, rows: int, capacity: int) -> None:
        """Room for `rows` sequences of `capacity` positions, in the model's dtype and on its device."""
        config, parameter = model.config, next(model.parameters())
        self.slots, self.visibility = model.method.slots, model.method.visibility
        self.filled = 0
        shape = (rows, config.kv_heads, capacity * self.slots, config.head_width)
        self.tensors = [
            (parameter.new_empty(shape), parameter.new_empty(shape)) for _ in range(config.num_layers)
        ]
        self.layers = [NextCell(self, k, v) for k, v in self.tensors]

    def write(self, kv: KeysValues) -> None:
        """Append whole positions found by a parallel prefill: per layer [B, H_kv, n * S, D]."""
        end = self.filled + kv[0][0].shape[2]
        for (k, v), (new_k, new_v) in zip(self.tensors, kv, strict=True):
            k[:, :, self.filled : end], v[:, :, self.filled : end] = new_k, new_v
        self.filled = end

    def keys_values(self) -> KeysValues:
        """The valid part, as a prefix for a parallel solver."""
        return [(k[:, :, : self.filled], v[:, :, : self.filled]) for k, v in self.tensors]

    def rewind(self, positions: int) -> None:
        """Forget everything from a position on."""
        self.filled = positions * self.slots

    def first_slots(self) -> list[FirstSlot]:
        """Layer caches that run ahead with slot 0 alone, each from the position reached."""
        return [FirstSlot(k, v, self.slots, self.filled) for k, v in self.tensors]


class NextCell(NamedTuple):
    """One layer of the cache; decoding appends one cell at a time."""

    cache: SlotCache
    k: Tensor
    v: Tensor

    def append(self, k: Tensor, v: Tensor) -> list[KeyBlock]:
        """Store the current cell, [B, H_kv, 1, D], and return what its slot sees, itself included.

        Under causal visibility several cells that follow one another may come at once.
        """
        cache = self.cache
        end = cache.filled + k.shape[2]
        self.k[:, :, cache.filled : end], self.v[:, :, cache.filled : end] = k, v
        if k.shape[2] > 1:
            before = slice(0, cache.filled)
            return [
                KeyBlock(k, v, Relation.CAUSAL),
                KeyBlock(self.k[:, :, before], self.v[:, :, before], Relation.ALL),
            ]
        columns = cache.visibility.columns(cache.filled % cache.slots, cache.slots)
        return [
            KeyBlock(self.k[:, :, :end][:, :, c], self.v[:, :, :end][:, :, c], Relation.ALL) for c in columns
        ]


class FirstSlot:
    """One layer for a draft: slot 0 of further positions, where slot 0 sees only its own kind.

    The cells it writes lie beyond the filled part, so that forgetting them is not writing them again.
    """

    def __init__(self, k: Tensor, v: Tensor, slots: int, filled: int) -> None:
        self.k, self.v, self.slots, self.next = k, v, slots, filled

    def append(self, k: Tensor, v: Tensor) -> list[KeyBlock]:
        """Store slot 0 of the next position, [B, H_kv, 1, D], and return the slots 0 so far."""
        self.k[:, :, self.next : self.next + 1], self.v[:, :, self.next : self.next + 1] = k, v
        self.next += self.slots
        seen = slice(0, self.next, self.slots)
        return [KeyBlock(self.k[:, :, seen], self.v[:, :, seen], Relation.ALL)]
