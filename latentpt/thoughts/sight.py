"""What cells see: the plan's columns, the keys of earlier stretches, and what documents and unthought slots hide.

The one place where this is decided for tensors; `plan` decided it for columns. Documents are told apart by their numbers;
slots that are not thought are hidden by explicit masks, which hold the documents too. Else there is neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentpt.modeling.attention import Group, Part, View
from latentpt.modeling.merge import KeyBlock, Relation
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.plan import Column, Seen, Source, Step, Stretch
from latentpt.thoughts.state import Cache, KeysValues, State

Columns = tuple[Column, ...]
Hidden = tuple[Tensor | None, tuple[Tensor, Tensor] | None]
"""A mask bool [B, 1, n, m], or the documents of n queries and m keys, [B, n] and [B, m]; or neither."""


class Sight:
    """The views of the steps of one stretch. Masks are made once for all layers and sweeps."""

    def __init__(
        self,
        stretch: Stretch,
        state: State,
        tokens: Tokens,
        keys_values: Callable[[int, Source], KeysValues],
    ) -> None:
        """`keys_values(layer, source)` are those that an earlier step left."""
        self.traits, self.state, self.tokens, self.keys_values = stretch.traits, state, tokens, keys_values
        self.in_place = isinstance(state, Cache) and stretch.one_row
        """Whether cells are written into the cache as they run."""
        self._masked = tokens.alive is not None or state.alive is not None
        self._found: dict[Any, Hidden] = {}

    def of(
        self, step: Step, queries: range, log_weights: Tensor | None = None, rows: Tensor | None = None
    ) -> Callable[[int], View]:
        """What some columns of a step see, as a function of the layer.

        `log_weights` [B, L, n] are those of the step's keys; `rows` int64 are the rows that run, None: all.
        """
        if self.in_place:
            return lambda layer: self._in_cache(step, queries, layer, log_weights, rows)
        count = len(step.columns)
        groups: list[tuple[slice, tuple[Part, ...], Columns, tuple[Seen, ...]]]
        if step.flat and len(queries) == count:  # one causal sequence
            own = Part(slice(None), Relation.CAUSAL, *self._hidden(step.columns, step.columns))
            groups = [(slice(0, count), (own,), step.columns, ())]
        else:
            groups = [
                (slice(at, at + 1), self._own(step, index), (step.columns[index],), step.sees[index])
                for at, index in enumerate(queries)
            ]

        def view(layer: int) -> View:
            found = []
            for slots, own, asking, seen in groups:
                others = [
                    KeyBlock(
                        *self.keys_values(layer, s.source), s.relation, *self._hidden(asking, (s.column,))
                    )
                    for s in seen
                    if s.source is not None
                ]
                found.append(Group(slots, own, (*others, *self._before(asking, layer))))
            return View(tuple(found), log_weights=log_weights)

        return view

    def _own(self, step: Step, index: int) -> tuple[Part, ...]:
        """What one column sees of its step."""
        query, count = step.columns[index], len(step.columns)
        seen = [
            Part(slice(step.columns.index(key), None, count), relation, *self._hidden((query,), (key,)))
            for key, source, relation in step.sees[index]
            if source is None
        ]
        # The first block has to show every query a key.
        return tuple(sorted(seen, key=lambda part: part.relation is not Relation.CAUSAL))

    def _before(self, asking: Columns, layer: int) -> list[KeyBlock]:
        """What some columns see of earlier stretches."""
        cells = self.state.keys_values(layer)
        if cells is None:
            return []
        return [
            KeyBlock(
                cells[0][:, :, part],
                cells[1][:, :, part],
                Relation.ALL,
                *self._hidden_before(asking, layer, part),
            )
            for part in self.state.before(layer, asking[0].slot)
        ]

    def _in_cache(
        self, step: Step, queries: range, layer: int, log_weights: Tensor | None, rows: Tensor | None
    ) -> View:
        """Single cells write themselves into the cache and see what lies there up to themselves."""
        assert isinstance(self.state, Cache)
        groups = []
        for at, index in enumerate(queries):
            asking = (step.columns[index],)
            own = []
            for part in self.state.up_to(layer, asking[0]):
                mask, documents = self._hidden_before(asking, layer, part)
                if rows is not None and mask is not None:
                    mask = mask[rows]
                if rows is not None and documents is not None:
                    documents = documents[0][rows], documents[1][rows]
                own.append(Part(part, Relation.ALL, mask, documents))
            groups.append(Group(slice(at, at + 1), tuple(own)))
        place = self.state.place(layer, step.columns)
        return View(tuple(groups), self.state.tensors[layer], place, rows, log_weights)

    # ------------------------------------------------------------------------------------------ what is hidden

    def _hidden(self, queries: Columns, keys: Columns) -> Hidden:
        """What some columns may not see of others."""
        key = queries, keys
        if key not in self._found:
            self._found[key] = self._hide(
                self._documents(queries), self._documents(keys), self._thought(keys)
            )
            mask = self._found[key][0]
            if queries == keys and mask is not None:
                # A cell sees itself, or the softmax of one that is not thought would be empty.
                itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
                self._found[key] = mask | itself, None
        return self._found[key]

    def _hidden_before(self, queries: Columns, layer: int, part: Any) -> Hidden:
        """What some columns may not see of a layer's earlier cells; in a cache written in place, of the present ones too."""
        if self.tokens.documents is None and not self._masked:
            return None, None
        key = queries, self.traits.grid(layer), part.start, part.step
        if key not in self._found:
            self._found[key] = self._hide_before(queries, self.traits.grid(layer), part)
        return self._found[key]

    def _hide_before(self, queries: Columns, grid: range, part: slice) -> Hidden:
        state, tokens = self.state, self.tokens
        alive = joined(state.alive, tokens.alive if self.in_place else None)
        documents = None if tokens.documents is None else state.documents
        if documents is not None:
            documents = documents.repeat_interleave(len(grid), dim=1)[:, part]
        if alive is not None:
            slots = torch.tensor(list(grid), device=alive.device)
            alive = (alive[..., None] > slots).flatten(1)[:, part]
            if self.in_place:
                alive[:, -1] = True  # the cell itself
        return self._hide(self._documents(queries), documents, alive)

    def _hide(self, rows: Tensor | None, columns: Tensor | None, thought: Tensor | None) -> Hidden:
        """From the documents of rows [B, n] and columns [B, m], and whether a column is thought."""
        if self._masked:
            return _visible(rows, columns, thought), None
        return None, None if rows is None or columns is None else (rows, columns)

    def _documents(self, columns: Columns) -> Tensor | None:
        """The document of each cell of some columns, row by row, [B, n]."""
        numbers = self.tokens.documents
        if numbers is None:
            return None
        return torch.stack([numbers[:, c.first :: c.every] for c in columns], dim=2).flatten(1)

    def _thought(self, columns: Columns) -> Tensor | None:
        """Whether each cell of some columns is thought, row by row, bool [B, n]."""
        alive = self.tokens.alive
        if alive is None:
            return None
        return torch.stack([alive[:, c.first :: c.every] > c.slot for c in columns], dim=2).flatten(1)


def _visible(rows: Tensor | None, columns: Tensor | None, thought: Tensor | None) -> Tensor | None:
    """bool [B, 1, n or 1, m] from the documents of rows [B, n] and columns [B, m], and whether a column is thought."""
    same = None if rows is None or columns is None else rows[:, :, None] == columns[:, None, :]
    if thought is not None:
        same = thought[:, None, :] if same is None else same & thought[:, None, :]
    return None if same is None else same[:, None]


def joined(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Facts of earlier positions and of new ones, [B, positions]; None where neither has any."""
    if old is None or new is None:
        return new if old is None else old
    return torch.cat([old, new], dim=1)
