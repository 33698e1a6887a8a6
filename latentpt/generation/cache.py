"""The static slot cache: keys and values of all cells decoded so far, written in place, in the order of thought.

Per layer one tensor pair [B, H_kv, capacity * S, D] whose third axis is the flat cell index i = t S + s. What a slot
sees of it is a view: everything under causal visibility, every S-th row where slots see only some slots.
"""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.decoder import KeysValues
from latentpt.modeling.merge import KeyBlock, Relation
from latentpt.thoughts.model import LanguageModel


class SlotCache:
    """Keys and values of a batch that decodes in step; `filled` cells are valid."""

    def __init__(self, model: LanguageModel, rows: int, capacity: int) -> None:
        """Room for `rows` sequences of `capacity` positions, in the model's dtype and on its device."""
        config, parameter = model.config, next(model.parameters())
        self.slots, self.visibility = model.method.slots, model.method.visibility
        self.filled = 0
        self.capacity = capacity
        shape = (rows, config.kv_heads, capacity * self.slots, config.head_width)
        self.layers = [
            _LayerCache(self, parameter.new_empty(shape), parameter.new_empty(shape))
            for _ in range(config.num_layers)
        ]

    def write(self, kv: KeysValues) -> None:
        """Append whole positions found by a parallel prefill: per layer [B, H_kv, n * S, D]."""
        for layer, (k, v) in zip(self.layers, kv, strict=True):
            layer.store(k, v)
        self.filled += kv[0][0].shape[2]

    def keys_values(self) -> KeysValues:
        """The valid part, as a prefix for a parallel solver."""
        return [(layer.k[:, :, : self.filled], layer.v[:, :, : self.filled]) for layer in self.layers]


class _LayerCache:
    """One layer of the cache; decoding appends one cell at a time."""

    def __init__(self, cache: SlotCache, k: Tensor, v: Tensor) -> None:
        self.cache, self.k, self.v = cache, k, v

    def store(self, k: Tensor, v: Tensor) -> int:
        start = self.cache.filled
        end = start + k.shape[2]
        self.k[:, :, start:end], self.v[:, :, start:end] = k, v
        return end

    def append(self, k: Tensor, v: Tensor) -> list[KeyBlock]:
        """Store the current cell and return what its slot sees, itself included."""
        end = self.store(k, v)
        columns = self.cache.visibility.columns(self.cache.filled % self.cache.slots, self.cache.slots)
        return [
            KeyBlock(self.k[:, :, :end][:, :, c], self.v[:, :, :end][:, :, c], Relation.ALL) for c in columns
        ]
