"""Execute a schedule: find the states of all cells of a stretch of positions.

    prev = h shifted by one slot            the state of the cell before
    u    = [embed | latents(prev)]          what each cell reads; the only place where latents are shifted in
    h    = trunk(u, visibility)

A sweep of stride 1 is one pass of plain causal attention over all cells. A sweep of a larger stride walks over
columns of cells; the keys and values of earlier columns are fresh, those of later ones are the last sweep's:

    stride S = 2, column 1 (x = queries, positions go right):      (0,0) (0,1) (1,0) (1,1) (2,0) (2,1)
        sees column 0 fresh, j <= i; itself, j <= i                  o     x     o     x     o     x
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.modeling.decoder import Decoder, KeysValues
from latentpt.modeling.merge import KeyBlock, Relation
from latentpt.thoughts.method import ThoughtMethod, Tokens, Visibility
from latentpt.thoughts.schedule import Schedule, Sweep


class Cells(NamedTuple):
    """What a sweep leaves behind for the next one, for the next chunk and for the reader."""

    inputs: Tensor
    """What the cells read, [B, L, n, d]."""
    x: Tensor
    """Residual stream after the last block of the cells somebody reads, [B, L, <= n, d]."""
    kv: KeysValues
    """Keys and values of all cells in flat order, where a later sweep or chunk wants them."""


def solve(
    decoder: Decoder,
    method: ThoughtMethod,
    tokens: Tokens,
    schedule: Schedule,
    prefix: KeysValues | None = None,
    keep: bool = False,
) -> tuple[Tensor, KeysValues]:
    """Run the schedule over tokens [B, L], after the cells whose keys and values are in `prefix`.

    Returns the residual stream of the last slots, [B, L, d], before the final norm, and, if `keep`, the keys and
    values of the stretch.
    """
    length = tokens.ids.shape[1]
    chunk = schedule.chunk or length
    pieces, kept = [], list(prefix or [])
    for start in range(0, length, chunk):
        stretch = tokens.at(slice(start, start + chunk))
        wanted = keep or start + chunk < length
        cells = _Stretch(decoder, method, stretch, kept).solve(schedule.sweeps, wanted)
        pieces.append(cells.x[:, :, -1])
        if wanted:
            kept = _append(kept, cells.kv)
    known = prefix[0][0].shape[2] if prefix else 0
    return torch.cat(pieces, dim=1), [(k[:, :, known:], v[:, :, known:]) for k, v in kept] if keep else []


class _Stretch:
    """One chunk of positions, and the sweeps over it."""

    def __init__(self, decoder: Decoder, method: ThoughtMethod, tokens: Tokens, prefix: KeysValues) -> None:
        self.decoder, self.method, self.tokens, self.prefix = decoder, method, tokens, prefix

    def solve(self, sweeps: Sequence[Sweep], keep: bool) -> Cells:
        """All sweeps in order; the last one's cells, with keys and values if `keep`."""
        cells: Cells | None = None
        for sweep, following in zip(sweeps, (*sweeps[1:], None), strict=True):
            with torch.set_grad_enabled(sweep.grad and torch.is_grad_enabled()):
                step = self._full_pass if sweep.stride == 1 else self._columns
                cells = step(sweep, following, cells, keep)
            if not sweep.grad and torch.is_autocast_enabled(self.tokens.embeds.device.type):
                # Autocast caches the weights it casts; those cast here carry no gradient for the sweeps to come.
                torch.clear_autocast_cache()
        assert cells is not None
        return cells

    def _full_pass(self, sweep: Sweep, following: Sweep | None, before: Cells | None, keep: bool) -> Cells:
        """All cells at once, causally; latents come from the previous sweep."""
        slots = sweep.slots
        u = self.tokens.embeds
        if slots > 1:
            latents = self._latents(before, range(1, slots))
            u = torch.cat([u, latents], dim=2)
        read = None
        if following is None and slots > 1:
            read = slice(slots - 1, slots)
        elif following is not None and following.slots == slots:
            read = slice(0, slots - 1)
        wanted = keep if following is None else following.stride > 1
        angles = self.decoder.angles(self.tokens.positions)
        others = [self._seen_prefix(layer, slots - 1) for layer in range(len(self.prefix))] or None
        x, kv = self.decoder.run(u, angles, others, read, keep=wanted)
        return Cells(u, x, kv)

    def _latents(self, before: Cells | None, slots: range) -> Tensor:
        """Inputs of some latent slots from the slots before them."""
        if not self.method.feedback:
            return self.method.latents(self.decoder, self.tokens, slots, None, None)
        assert before is not None, "a schedule starts with the token slots"
        states = self.method.states(self.decoder, before.x[:, :, : len(slots)])
        return self.method.latents(
            self.decoder, self.tokens, slots, before.inputs[:, :, : len(slots)], states
        )

    def _columns(self, sweep: Sweep, following: Sweep | None, before: Cells | None, keep: bool) -> Cells:
        """Slot after slot; latents come from this sweep."""
        slots = sweep.slots
        assert sweep.stride == slots
        wants_kv = keep if following is None else self.method.visibility is Visibility.CAUSAL
        angles = self.decoder.angles(self.tokens.positions)
        fresh: list[KeysValues] = []
        column: Cells | None = None
        for slot in range(slots):
            u = self.tokens.embeds if slot == 0 else self._latents(column, range(slot, slot + 1))
            unread = following is not None and slot == slots - 1
            others = [
                self._seen(layer, slot, slots, fresh, before) for layer in range(len(self.decoder.blocks))
            ]
            x, kv = self.decoder.run(u, angles, others, slice(0, 0) if unread else None, keep=True)
            column = Cells(u, x, kv)
            fresh.append(kv)
        assert column is not None
        return Cells(column.inputs, column.x, _interleave(fresh) if wants_kv else [])

    def _seen(
        self, layer: int, slot: int, slots: int, fresh: list[KeysValues], before: Cells | None
    ) -> list[KeyBlock]:
        """What a column sees besides itself: earlier slots, later slots of the sweep before, the prefix."""
        visibility = self.method.visibility
        seen = [] if not self.prefix else self._seen_prefix(layer, slot)
        if visibility is not Visibility.SAME_SLOT:
            seen += [KeyBlock(*kv[layer], Relation.CAUSAL) for kv in fresh]
        if visibility is Visibility.CAUSAL and before is not None and before.kv:
            k, v = before.kv[layer]
            seen += [
                KeyBlock(k[:, :, j::slots], v[:, :, j::slots], Relation.STRICT)
                for j in range(slot + 1, slots)
            ]
        return seen

    def _seen_prefix(self, layer: int, slot: int) -> list[KeyBlock]:
        """The cells of earlier chunks that slot `slot` sees."""
        k, v = self.prefix[layer]
        columns = self.method.visibility.columns(slot, self.method.slots)
        return [KeyBlock(k[:, :, column], v[:, :, column], Relation.ALL) for column in columns]


def _interleave(columns: list[KeysValues]) -> KeysValues:
    """Columns of [B, H, L, D] per layer -> flat order [B, H, L * S, D]."""
    layers = zip(*columns, strict=True)
    return [
        (
            torch.stack([k for k, _ in layer], 3).flatten(2, 3),
            torch.stack([v for _, v in layer], 3).flatten(2, 3),
        )
        for layer in layers
    ]


def _append(prefix: KeysValues, kv: KeysValues) -> KeysValues:
    if not prefix:
        return kv
    return [
        (torch.cat([k0, k1], 2), torch.cat([v0, v1], 2))
        for (k0, v0), (k1, v1) in zip(prefix, kv, strict=True)
    ]
