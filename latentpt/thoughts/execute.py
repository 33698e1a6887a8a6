"""Execute a plan: the one way in which cells run, in training, prefill, decoding and diagnostics alike.

    prev = the state of the cell that each cell is fed by     zero where a document begins
    u    = [embed | inject(prev)]                             what each cell reads
    h    = layers(u, what the cell sees)

A step of the plan that holds all cells is plain causal attention; any other sees key columns that earlier steps left,
merged by their log-sum-exp. Documents and slots that were not thought narrow what is seen by an explicit mask.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt.modeling.decoder import Decoder, Ran
from latentpt.modeling.rotary import Rotary
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.plan import EMBEDDING, Column, Fed, Plan, Source, Step, Stretch
from latentpt.thoughts.sight import Sight, joined
from latentpt.thoughts.state import Before, KeysValues, State


class Watch:
    """Looks on while a plan is executed. Every method does nothing until a subclass fills it."""

    every_slot = False
    """Whether the streams of all slots of the last sweep are wanted, not only of the one that predicts."""

    def begin(self, stretch: Stretch, first: int) -> None:
        """A stretch begins at a position."""

    def carried(self, step: Step, column: Column, before: Before) -> Before:
        """What a column of a step is fed from earlier positions; what is returned goes in."""
        return before

    def inject(self, step: Step, slots: range, u: Tensor) -> Tensor:
        """Inputs [B, L, n, d] made for slots of a step; what is returned goes in."""
        return u

    def attended(self, step: Step, layer: int, q: Tensor, k: Tensor) -> None:
        """Rotated q [B, L, R, H, D] and k [B, L, S, H_kv, D] of a step in a layer."""

    def enough(self, sweep: int) -> bool:
        """Asked after every sweep: whether those between it and the last one may be left out."""
        return False

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """A step's inputs [B, L, n, d] and the streams [B, L, R, d] of the columns that are read."""


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
        return _interleave(parts, 1)[:, source.first :: source.every]

    def keys_values(self, layer: int, source: Source) -> KeysValues:
        """Keys and values [B, H_kv, n, D] of one column."""
        if len(source.parts) == 1:
            k, v = self._part(layer, *source.parts[0])
        else:
            key = layer, source.parts
            if key not in self.joined:
                pairs = zip(*(self._part(layer, *part) for part in source.parts), strict=True)
                k, v = (_interleave(list(columns), 2) for columns in pairs)
                self.joined[key] = k, v
            k, v = self.joined[key]
        return k[:, :, source.first :: source.every], v[:, :, source.first :: source.every]

    def _part(self, layer: int, step: int, column: int) -> KeysValues:
        outcome = self[step]
        k, v = outcome.keys_values[layer - outcome.step.layers[0]]
        count = len(outcome.step.columns)
        return k[:, :, column::count], v[:, :, column::count]


class Streams(NamedTuple):
    """What is read off a sweep."""

    x: Tensor
    """Streams [B, L, d] of the slot that predicts, before the final norm."""
    weight: float
    """Factor on its nats in the loss."""


def execute(
    decoder: Decoder,
    method: ThoughtMethod,
    tokens: Tokens,
    plan: Plan,
    state: State | None = None,
    watch: Watch | None = None,
) -> list[Streams]:
    """Run a plan over tokens [B, L] that follow the state, which grows by them.

    Returns what is read off every sweep that the loss counts; the last sweep's streams come last.
    """
    state = State(plan.traits) if state is None else state
    read = []
    for start, stretch in plan.stretches:
        part = tokens.at(slice(start, start + stretch.length, 1))
        read.append(_Walk(decoder, method, part, stretch, state, watch or Watch()).run())
    if len(read) == 1:
        return read[0]
    return [
        Streams(torch.cat([x for x, _ in same], dim=1), same[0].weight) for same in zip(*read, strict=True)
    ]


class _Walk:
    """One stretch of positions, step by step."""

    def __init__(
        self,
        decoder: Decoder,
        method: ThoughtMethod,
        tokens: Tokens,
        stretch: Stretch,
        state: State,
        watch: Watch,
    ) -> None:
        self.decoder, self.method, self.tokens = decoder, method, tokens
        self.stretch, self.state, self.watch = stretch, state, watch
        self.angles = decoder.angles(tokens.positions)
        self.outcomes = Outcomes()
        self.outcomes[EMBEDDING.number] = Outcome(EMBEDDING, tokens.embeds, tokens.embeds, [], None)
        self.sight = Sight(stretch, state, tokens, self.outcomes.keys_values)

    def run(self) -> list[Streams]:
        """All steps in order; what is read, and the state grown."""
        self.watch.begin(self.stretch, self.state.positions)
        index = 0
        while index < len(self.stretch.steps):
            step = self.stretch.steps[index]
            with torch.set_grad_enabled(step.grad and torch.is_grad_enabled()):
                self.outcomes[step.number] = self.step(step)
            if not step.grad and torch.is_autocast_enabled(self.tokens.embeds.device.type):
                # Autocast caches the weights it casts; those cast here carry no gradient for the steps to come.
                torch.clear_autocast_cache()
            for done in step.done:
                del self.outcomes[done]
            index = self.following(index)
        read = [Streams(self.predicting(slots), weight) for slots, weight in self.stretch.readings]
        self.grow()
        return read

    def following(self, index: int) -> int:
        """The step after one: the next, or, if the watch has seen enough sweeps, the first of the last sweep."""
        steps, following = self.stretch.steps, index + 1
        if following == len(steps) or steps[following].sweep == steps[index].sweep:
            return following
        last = next(i for i, step in enumerate(steps) if step.sweep == steps[-1].sweep)
        if not self.watch.enough(steps[index].sweep) or last <= following or not steps[index].refines:
            return following
        # Sweeps over the same slots are alike: what this one left stands for what the one before the last leaves.
        shift = steps[last].number - steps[following].number
        here = steps[index].sweep
        moved = {n + shift * (o.step.sweep == here): o for n, o in self.outcomes.items()}
        self.outcomes.clear()
        self.outcomes.update(moved)
        return last

    def step(self, step: Step) -> Outcome:
        """Run one step."""
        u, memory = self.inputs(step)
        layers, everything = range(*step.layers), range(len(step.columns))
        read = None if step.read == everything else slice(step.read.start, step.read.stop)
        inner = self.sight.of(step, everything)
        outer = inner if read is None else self.sight.of(step, step.read)
        views = [(outer if layer == layers[-1] else inner)(layer) for layer in layers]
        ran = self.decoder.run(
            u, self.angles_of(step), views, layers.start, read, step.keep and not self.sight.in_place,
            self.stretch.traits.tap if step.feeds else None, self.method.injections, memory,
            None if type(self.watch).attended is Watch.attended else lambda *seen: self.watch.attended(step, *seen),
        )  # fmt: skip
        self.watch.ran(step, u, ran.x)
        return Outcome(step, u, ran.x, ran.keys_values, self.states(step, ran, memory))

    def states(self, step: Step, ran: Ran, memory: Tensor | None) -> Tensor | None:
        """What those are fed who are fed by cells of a step."""
        if not step.feeds:
            return None
        first = 0 if ran.tapped is not None else step.read.start
        x = ran.x if ran.tapped is None else ran.tapped
        x = x[:, :, step.feeds.start - first : step.feeds.stop - first]
        if memory is not None:
            memory = memory[:, :, step.feeds.start : step.feeds.stop]
        return self.method.update(self.method.states(self.decoder, x), memory)

    def angles_of(self, step: Step) -> Rotary | None:
        """Rotary angles of a step's cells: one for all columns of a position, or each its own."""
        if self.angles is None:
            return None
        places = {(column.first, column.every): None for column in step.columns}
        parts = [[angle[..., first::every, :, :] for angle in self.angles] for first, every in places]
        return Rotary(*(_cat(list(columns), -2) for columns in zip(*parts, strict=True)))

    # ------------------------------------------------------------------------------------------ inputs

    def inputs(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """What the cells of a step read, and what they are fed, [B, L, n, d] each; None if nothing is there."""
        if step.layers[0] == self.stretch.traits.span[1]:
            return self.outcomes.gather(step.base, Outcome.stream_of), None
        pieces, memories = [], []
        for columns in _alike(step):
            first = columns[0]
            tokens = self.tokens.at(slice(step.columns[first].first, None, step.columns[first].every))
            if step.layers[0]:
                embeds = self.outcomes.gather(step.base[first : first + 1], Outcome.stream_of)
                tokens = tokens.inside(embeds)
            if tokens.chance is not None:
                tokens = tokens._replace(chance=tokens.chance.of(step.sweep))
            fed = [f for f in (step.fed[index] for index in columns) if f is not None]
            before = self.before(step, columns, fed) if fed else None
            slots = _range([step.columns[index].slot for index in columns])
            if before is None and slots[0] == 0:
                u = tokens.embeds
            else:
                u = self.method.inject(self.decoder, tokens, slots, before)
                u = self.watch.inject(step, slots, u)
            pieces.append(u)
            memories.append(None if before is None or before.known is False else before.states)
        if not self.method.remembers or all(memory is None for memory in memories):
            return _cat(pieces, 2), None
        pairs = zip(pieces, memories, strict=True)
        return _cat(pieces, 2), _cat([torch.zeros_like(u) if m is None else m for u, m in pairs], 2)

    def before(self, step: Step, columns: range, fed: Sequence[Fed]) -> Before:
        """The cells that some columns are fed by, all from the same place before."""
        if fed[0].feed.back:
            cells = [self.cell_before(step, step.columns[c], f) for c, f in zip(columns, fed, strict=True)]
            return cells[0] if len(cells) == 1 else _together(cells)
        sources = [f.source for f in fed]
        if None in sources:
            return Before(*(part[:, :, None] for part in self.state.last[fed[0].feed.slot]))
        return Before(*(self.outcomes.gather(sources, of) for of in (Outcome.inputs_of, Outcome.state_of)))

    def cell_before(self, step: Step, column: Column, fed: Fed) -> Before:
        """The cells of the positions before a column, zero where there are none: [B, L, 1, d] each."""
        here = self.tokens.at(slice(column.first, None, column.every))
        rows = here.ids.shape[1]
        last = self.state.last.get(fed.feed.slot)
        zero = here.embeds[:, :, 0].new_zeros(())
        unknown = torch.zeros(here.ids.shape, dtype=torch.bool, device=zero.device)
        if fed.source is None:
            pair = [zero.expand_as(here.embeds[:, :, 0])] * 2
            unknown = ~unknown
        else:
            pair = self.pair(fed.feed.slot, fed.source)
        if fed.wraps:
            first = last or (zero.expand_as(here.embeds[:, :1, 0]),) * 2
            pair = [torch.cat([f, p], dim=1) for f, p in zip(first, pair, strict=True)]
            unknown = torch.cat([torch.full_like(unknown[:, :1], last is None), unknown], dim=1)
        inputs, states = (part[:, :rows, None] for part in pair)
        if fed.source is None and not (fed.wraps and last):
            before = Before(inputs, states, known=False)
        else:
            begins = unknown[:, :rows] | self.begins[:, column.first :: column.every]
            begins = begins[..., None, None]
            before = Before(inputs, states.masked_fill(begins, 0.0), ~begins)
        return self.watch.carried(step, column, before)

    def pair(self, fed_by: int | None, source: Source) -> list[Tensor]:
        """Input and state [B, L, d] of the cells that feed; where the token's own stream feeds, this twice."""
        if fed_by is None:
            return [self.outcomes.column(source, Outcome.stream_of)] * 2
        return [self.outcomes.column(source, of) for of in (Outcome.inputs_of, Outcome.state_of)]

    @functools.cached_property
    def begins(self) -> Tensor:
        """Whether a position is the first of its document, bool [B, L]."""
        documents = self.tokens.documents
        if documents is None:
            return torch.zeros_like(self.tokens.ids, dtype=torch.bool)
        before = documents[:, :1] if self.state.documents is None else self.state.documents[:, -1:]
        return documents != torch.cat([before, documents[:, :-1]], dim=1)

    # ------------------------------------------------------------------------------------------ what is left

    def predicting(self, slots: tuple[Source, ...]) -> Tensor:
        """Streams [B, L, d] of the slot that predicts: the last one, or each token's last that is thought."""
        if len(slots) == 1:
            return self.outcomes.column(slots[0], Outcome.stream_of)
        alive = self.tokens.alive
        if alive is None:
            return self.outcomes.column(slots[-1], Outcome.stream_of)
        x = self.outcomes.gather(slots, Outcome.stream_of)
        index = (alive - 1).clamp(0, len(slots) - 1)[..., None, None].expand(-1, -1, 1, x.shape[-1])
        return x.gather(2, index)[:, :, 0]

    def grow(self) -> None:
        """Leave keys, values, states and facts for what comes next."""
        state, done = self.state, self.stretch.completes
        if not self.sight.in_place:
            for layer, sources in enumerate(self.stretch.keys):
                columns = [self.outcomes.keys_values(layer, source) for source in sources]
                k, v = (_interleave(list(parts), 2) for parts in zip(*columns, strict=True))
                state.append(layer, k, v)
        for slot, row, source in self.stretch.leaves:
            inputs, x = (part[:, row].unsqueeze(1) for part in self.pair(slot, source))
            state.last[slot] = inputs, x
        if done:
            present = (t if t is None else t[:, :done] for t in (self.tokens.documents, self.tokens.alive))
            olds = (state.documents, state.alive)
            state.documents, state.alive = (joined(old, new) for old, new in zip(olds, present, strict=True))
            state.positions += done


def _alike(step: Step) -> list[range]:
    """Neighbouring columns of a step that are fed alike: from the same place before, or not at all."""

    def kind(index: int) -> Any:
        column, fed = step.columns[index], step.fed[index]
        return (
            column.first,
            column.every,
            fed and (fed.feed.back, fed.source is None),
            not fed and column.slot == 0,
        )

    groups = (list(group) for _, group in itertools.groupby(range(len(step.columns)), kind))
    return [range(group[0], group[-1] + 1) for group in groups]


def _together(cells: Sequence[Before]) -> Before:
    """What several columns are fed from earlier positions."""
    inputs, states = (torch.cat([before[part] for before in cells], dim=2) for part in (0, 1))
    known = [torch.as_tensor(b.known, device=states.device).expand_as(b.states[..., :1]) for b in cells]
    return Before(inputs, states, torch.cat(known, dim=2))


def _columns(x: Tensor, columns: slice) -> Tensor:
    return x if columns == slice(0, x.shape[2]) else x[:, :, columns]


def _range(slots: list[int]) -> range:
    step = slots[1] - slots[0] if len(slots) > 1 else 1
    return range(slots[0], slots[-1] + 1, step)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _interleave(columns: list[Tensor], dim: int) -> Tensor:
    """Undo x[r::stride]: columns whose rows lie along `dim`, the later ones perhaps a row shorter, as one tensor."""
    if len(columns) == 1:
        return columns[0]
    total, rows = sum(column.shape[dim] for column in columns), columns[0].shape[dim]
    if total < rows * len(columns):
        after = columns[0].dim() - dim - 1
        columns = [F.pad(c, [0] * (2 * after) + [0, rows - c.shape[dim]]) for c in columns]
    return torch.stack(columns, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, total)
