"""What the steps of a plan leave for one another, and columns of it joined position by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt.thoughts.plan import Source, Step
from latentpt.thoughts.state import KeysValues


class Outcome(NamedTuple):
    """What a step leaves for those after it."""

    step: Step
    inputs: Tensor
    """What its cells read, [B, L, n, d]."""
    x: Tensor
    """Streams of the columns that are read, [B, L, R, d]."""
    keys_values: list[KeysValues]
    """Layer by layer, if somebody sees them later."""
    states: Tensor | None
    """States [B, L, f, d] of the columns that feed others."""
    records: Tensor | None = None
    """Its cells' records [B, L, n, r], where tokens think different numbers of slots."""

    def records_of(self, columns: slice) -> Tensor:
        """Records of some columns."""
        assert self.records is not None
        return self.records[:, :, columns]

    def inputs_of(self, columns: slice) -> Tensor:
        """What some columns read."""
        return _columns(self.inputs, columns)

    def stream_of(self, columns: slice) -> Tensor:
        """Streams of some columns after the last layer."""
        start = self.step.read.start
        return _columns(self.x, slice(columns.start - start, columns.stop - start))

    def state_of(self, columns: slice) -> Tensor:
        """States of some columns."""
        assert self.states is not None
        start = self.step.feeds.start
        return _columns(self.states, slice(columns.start - start, columns.stop - start))


class Outcomes(dict[int, Outcome]):
    """Step by step what is left, and columns of it."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: dict[tuple[int, Any], KeysValues] = {}

    def gather(self, sources: Sequence[Source | None], of: Callable[[Outcome, slice], Tensor]) -> Tensor:
        """Values [B, L, n, d] of n columns."""
        found = [source for source in sources if source is not None]
        step, first = found[0].parts[0]
        if found == [Source(((step, first + index),)) for index in range(len(found))]:
            return of(self[step], slice(first, first + len(found)))
        return torch.stack([self.column(source, of) for source in found], dim=2)

    def column(self, source: Source, of: Callable[[Outcome, slice], Tensor]) -> Tensor:
        """Values [B, L, d] of one column."""
        parts = [of(self[step], slice(column, column + 1))[:, :, 0] for step, column in source.parts]
        return interleave(parts, 1)[:, source.first :: source.every]

    def keys_values(self, layer: int, source: Source) -> KeysValues:
        """Keys and values [B, H_kv, n, D] of one column."""
        if len(source.parts) == 1:
            k, v = self._part(layer, *source.parts[0])
        else:
            key = layer, source.parts
            if key not in self.joined:
                pairs = zip(*(self._part(layer, *part) for part in source.parts), strict=True)
                k, v = (interleave(list(columns), 2) for columns in pairs)
                self.joined[key] = k, v
            k, v = self.joined[key]
        return k[:, :, source.first :: source.every], v[:, :, source.first :: source.every]

    def _part(self, layer: int, step: int, column: int) -> KeysValues:
        outcome = self[step]
        k, v = outcome.keys_values[layer - outcome.step.layers[0]]
        count = len(outcome.step.columns)
        return k[:, :, column::count], v[:, :, column::count]


def _columns(x: Tensor, columns: slice) -> Tensor:
    return x if columns == slice(0, x.shape[2]) else x[:, :, columns]


def interleave(columns: list[Tensor], dim: int) -> Tensor:
    """Undo x[r::stride]: columns whose rows lie along `dim`, the later ones perhaps a row shorter, as one tensor."""
    if len(columns) == 1:
        return columns[0]
    total, rows = sum(column.shape[dim] for column in columns), columns[0].shape[dim]
    if total < rows * len(columns):
        after = columns[0].dim() - dim - 1
        columns = [F.pad(c, [0] * (2 * after) + [0, rows - c.shape[dim]]) for c in columns]
    return torch.stack(columns, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, total)
