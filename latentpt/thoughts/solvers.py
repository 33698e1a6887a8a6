"""Execute a schedule: find the states of all cells of a stretch of positions.

    prev = h shifted by one slot            the state of the cell before
    u    = [embed | latents(prev)]          what each cell reads; the only place where latents are shifted in
    h    = trunk(u, visibility)

A sweep of stride 1 is one pass of plain causal attention over all cells. A sweep of a larger stride walks over
columns, every stride-th cell each; keys and values of earlier columns are fresh, those of later ones the last sweep's.
With S = 2, what the cells of column 1 (q) see of column 0 (fresh, o) and, for stride 4, of columns 2 and 3 (stale, .):

    cell        (0,0) (0,1) (1,0) (1,1) (2,0) (2,1) (3,0) (3,1)
    stride 2      o     q     o     q     o     q     o     q      row k sees rows <= k of columns 0 and 1
    stride 4      o     q     .     .     o     q     .     .      and rows < k of columns 2 and 3
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt.modeling.decoder import Decoder, KeysValues
from latentpt.modeling.merge import KeyBlock, Relation
from latentpt.modeling.rotary import Rotary
from latentpt.thoughts.method import ThoughtMethod, Tokens, Visibility
from latentpt.thoughts.schedule import Schedule, Sweep


class Cells(NamedTuple):
    """What a sweep leaves behind for the next one, for the next chunk and for the reader."""

    inputs: Tensor
    """What the cells read, [B, L, n, d]; after a sweep by columns that nobody measures, the last slot's alone."""
    x: Tensor
    """Residual stream after the last block of the cells somebody reads, [B, L, <= n, d]."""
    kv: KeysValues
    """Keys and values of all cells in flat order, where a later sweep or chunk wants them."""


class Residuals:
    """How far each sweep moved the latents: |z_k - z_(k-1)| / |z_k|, over everything solved since it was made."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def add(self, sweep: int, now: Tensor, before: Tensor) -> None:
        """Note the latents [B, L, N, d] that a sweep read and those that the sweep before it read."""
        moved, size = (now - before).float().square().sum(), now.float().square().sum()
        old = self.sums.get(sweep)
        self.sums[sweep] = (moved, size) if old is None else (old[0] + moved, old[1] + size)

    def values(self) -> Tensor:
        """One value per refinement, float32, on the device; empty if nothing was refined."""
        ratios = [(moved / size).sqrt() for _, (moved, size) in sorted(self.sums.items())]
        return torch.stack(ratios) if ratios else torch.empty(0)


def solve(
    decoder: Decoder,
    method: ThoughtMethod,
    tokens: Tokens,
    schedule: Schedule,
    prefix: KeysValues | None = None,
    keep: bool = False,
    residuals: Residuals | None = None,
) -> tuple[Tensor, KeysValues]:
    """Run the schedule over tokens [B, L], after the cells whose keys and values are in `prefix`.

    Returns the residual stream of the last slots, [B, L, d], before the final norm, and, if `keep`, the keys and
    values of the stretch. `residuals`, if given, are told how far each sweep moved.
    """
    length = tokens.ids.shape[1]
    chunk = schedule.chunk or length
    pieces, kept = [], list(prefix or [])
    for start in range(0, length, chunk):
        stretch = tokens.at(slice(start, start + chunk))
        wanted = keep or start + chunk < length
        before = tokens.at(slice(0, start)).documents
        cells = Stretch(decoder, method, stretch, kept, residuals, before).solve(schedule.sweeps, wanted)
        pieces.append(cells.x[:, :, -1])
        if wanted:
            kept = _append(kept, cells.kv)
    known = prefix[0][0].shape[2] if prefix else 0
    return torch.cat(pieces, dim=1), [(k[:, :, known:], v[:, :, known:]) for k, v in kept] if keep else []


class Stretch:
    """One chunk of positions, and the sweeps over it."""

    def __init__(
        self,
        decoder: Decoder,
        method: ThoughtMethod,
        tokens: Tokens,
        prefix: KeysValues,
        residuals: Residuals | None = None,
        documents_before: Tensor | None = None,
    ) -> None:
        self.decoder, self.method, self.tokens, self.prefix = decoder, method, tokens, prefix
        self.residuals, self.documents_before = residuals, documents_before

    @functools.cached_property
    def angles(self) -> Rotary | None:
        """Rotary angles of the positions, the same in every sweep; None for learned positions."""
        return self.decoder.angles(self.tokens.positions)

    def solve(self, sweeps: Sequence[Sweep], keep: bool) -> Cells:
        """All sweeps in order; the last one's cells, with keys and values if `keep`."""
        cells: Cells | None = None
        for index, (sweep, following) in enumerate(zip(sweeps, (*sweeps[1:], None), strict=True)):
            before = cells
            with torch.set_grad_enabled(sweep.grad and torch.is_grad_enabled()):
                cells = self.sweep(sweep, following, before, keep)
            if self.residuals is not None and before is not None and sweep.slots == before.inputs.shape[2]:
                self.residuals.add(index, cells.inputs[:, :, 1:], before.inputs[:, :, 1:])
            if not sweep.grad and torch.is_autocast_enabled(self.tokens.embeds.device.type):
                # Autocast caches the weights it casts; those cast here carry no gradient for the sweeps to come.
                torch.clear_autocast_cache()
        assert cells is not None
        return cells

    def sweep(self, sweep: Sweep, following: Sweep | None, before: Cells | None, keep: bool) -> Cells:
        """One sweep on the cells of the one before, computing what `following` or, at the end, the reader wants."""
        step = self._full_pass if sweep.stride == 1 else self._columns
        return step(sweep, following, before, keep)

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
        documents = self.tokens.documents
        cells = None if documents is None else documents.repeat_interleave(slots, dim=1)
        others = [self._seen_prefix(layer, slots - 1, cells) for layer in range(len(self.prefix))] or None
        x, kv = self.decoder.run(u, self.angles, others, read, keep=wanted, mask=_together(cells, cells))
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
        """Set after set: column r holds slot r mod S of every m-th position, m = stride / S."""
        slots = sweep.slots
        every = min(sweep.stride // slots, self.tokens.ids.shape[1])
        fresh: list[KeysValues] = []
        outcomes: list[Tensor] = []
        inputs: list[Tensor] = []
        column: Cells | None = None
        for residue in range(every):
            here = self if every == 1 else self._every(residue, every)
            mask = _together(here.tokens.documents, here.tokens.documents)
            for slot in range(slots):
                u = here.tokens.embeds if slot == 0 else here._latents(column, range(slot, slot + 1))
                others = self._seen(slots, every, fresh, before)
                # The last slot's state is for the reader, the others' for the slot after them, if it feeds on states.
                wanted = following is None if slot == slots - 1 else self.method.feedback
                read = None if wanted else slice(0, 0)
                x, kv = self.decoder.run(u, here.angles, others, read, keep=True, mask=mask)
                column = Cells(u, x, kv)
                fresh.append(kv)
                inputs.append(u)
            outcomes.append(x)
        assert column is not None
        wants_kv = keep if following is None else self._sees_later(following)
        kv = [(_interleave(k), _interleave(v)) for k, v in _by_layer(fresh)] if wants_kv else []
        measured = column.inputs
        if self.residuals is not None:
            rows = [torch.cat(inputs[first : first + slots], dim=2) for first in range(0, len(inputs), slots)]
            measured = _interleave(rows, dim=1)
        return Cells(measured, _interleave(outcomes, dim=1), kv)

    def _every(self, residue: int, every: int) -> Stretch:
        """The positions residue, residue + every, .. alone."""
        tokens = self.tokens.at(slice(residue, None, every))
        return Stretch(self.decoder, self.method, tokens, self.prefix)

    def _sees_later(self, sweep: Sweep) -> bool:
        """Whether some column of a sweep sees one that comes after it."""
        return self.method.visibility is Visibility.CAUSAL or sweep.stride > sweep.slots

    def _seen(
        self, slots: int, every: int, fresh: list[KeysValues], before: Cells | None
    ) -> list[list[KeyBlock]]:
        """Per layer what the next column sees besides itself: earlier columns, later ones as they were, the prefix."""
        number, stride = len(fresh), slots * every
        slot, visibility = number % slots, self.method.visibility
        earlier = [j for j in range(number) if visibility.sees(slot, j % slots)]
        later = [j for j in range(number + 1, stride) if visibility.sees(slot, j % slots)]
        rows = -(-(self.tokens.ids.shape[1] - number // slots) // every)
        documents = [self.tokens.at(slice(j // slots, None, every)).documents for j in range(stride)]
        # A fresh column may have a row more than this one; that row no query of it sees.
        seen_rows = [
            column if column is None or j > number else column[:, :rows] for j, column in enumerate(documents)
        ]
        masks = [_together(documents[number], column) for column in seen_rows]
        seen = []
        for layer in range(len(self.decoder.blocks)):
            blocks = self._seen_prefix(layer, slot, documents[number]) if self.prefix else []
            for j in earlier:
                k, v = fresh[j][layer]
                blocks.append(KeyBlock(k[:, :, :rows], v[:, :, :rows], Relation.CAUSAL, masks[j]))
            if before is not None and before.kv:
                k, v = before.kv[layer]
                stale = [(k[:, :, j::stride], v[:, :, j::stride], Relation.STRICT, masks[j]) for j in later]
                blocks += [KeyBlock(*block) for block in stale]
            seen.append(blocks)
        return seen

    def _seen_prefix(self, layer: int, slot: int, documents: Tensor | None) -> list[KeyBlock]:
        """The cells of earlier chunks that slot `slot` sees, from rows of the documents named."""
        k, v = self.prefix[layer]
        mask, slots = None, self.method.slots
        if documents is not None and self.documents_before is not None:
            mask = _together(documents, self.documents_before.repeat_interleave(slots, dim=1))
        return [
            KeyBlock(k[:, :, c], v[:, :, c], Relation.ALL, None if mask is None else mask[..., c])
            for c in self.method.visibility.columns(slot, slots)
        ]


def _together(rows: Tensor | None, columns: Tensor | None) -> Tensor | None:
    """Whether rows [B, n] and columns [B, m] are of one document, bool [B, 1, n, m]; None where none are named."""
    if rows is None or columns is None:
        return None
    return (rows[:, :, None] == columns[:, None, :])[:, None]


def _by_layer(columns: list[KeysValues]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Columns of layers of (k, v) -> layers of (all k, all v)."""
    return [([k for k, _ in layer], [v for _, v in layer]) for layer in zip(*columns, strict=True)]


def _interleave(columns: list[Tensor], dim: int = 2) -> Tensor:
    """Undo x[r::stride]: columns whose rows lie along `dim`, the later ones perhaps a row shorter, as one tensor."""
    if len(columns) == 1:
        return columns[0]
    total, rows = sum(column.shape[dim] for column in columns), columns[0].shape[dim]
    after = columns[0].dim() - dim - 1
    padded = [F.pad(c, [0] * (2 * after) + [0, rows - c.shape[dim]]) for c in columns]
    return torch.stack(padded, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, total)


def _append(prefix: KeysValues, kv: KeysValues) -> KeysValues:
    if not prefix:
        return kv
    return [
        (torch.cat([k0, k1], 2), torch.cat([v0, v1], 2))
        for (k0, v0), (k1, v1) in zip(prefix, kv, strict=True)
    ]
