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
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.modeling.attention import HIDDEN
from latentpt.modeling.decoder import Decoder, Ran
from latentpt.modeling.rotary import Rotary
from latentpt.thoughts.halting import Halting
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.outcome import Outcome, Outcomes, interleave
from latentpt.thoughts.plan import EMBEDDING, Column, Fed, Plan, Source, Step, Stretch
from latentpt.thoughts.sight import Sight, joined
from latentpt.thoughts.state import Before, State
from latentpt.thoughts.watch import Watch


class Prediction(NamedTuple):
    """What is read off a sweep."""

    hidden: Tensor
    """State [B, L, d] that predicts, after the final norm."""
    weight: float
    """Factor on its nats in the loss."""
    slot_weights: Tensor | None = None
    """W(t, s) of the slots in use, [B, L, n], where tokens think different numbers of them."""


def execute(
    decoder: Decoder,
    method: ThoughtMethod,
    tokens: Tokens,
    plan: Plan,
    state: State | None = None,
    watch: Watch | None = None,
) -> list[Prediction]:
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
    return [_joined(same) for same in zip(*read, strict=True)]


def _joined(parts: Sequence[Prediction]) -> Prediction:
    """What was read off one sweep in several stretches."""
    weights = [part.slot_weights for part in parts if part.slot_weights is not None]
    hidden = torch.cat([part.hidden for part in parts], dim=1)
    return Prediction(hidden, parts[0].weight, torch.cat(weights, dim=1) if weights else None)


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
        self.halting = method.halting if stretch.traits.mixes else None
        self.angles = decoder.angles(tokens.positions)
        self.outcomes = Outcomes()
        self.outcomes[EMBEDDING.number] = Outcome(EMBEDDING, tokens.embeds, tokens.embeds, [], None)
        self.sight = Sight(stretch, state, tokens, self.outcomes.keys_values)

    def run(self) -> list[Prediction]:
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
        read = [self.reading(slots, weight) for slots, weight in self.stretch.readings]
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
        """Run one step, in a cache for those rows alone whose token thinks it."""
        u, memory, records = self.inputs(step)
        weights = None if records is None else records[..., 0]
        if weights is not None:
            self.watch.weighed(step, weights)
        rows = None if weights is None else self.going_on(weights)
        if rows is None:
            ran = self.run_layers(step, u, memory, weights)
        else:
            x = u.new_zeros(*u.shape[:2], len(step.read), u.shape[-1])
            ran = Ran(x, [], None)
            if len(rows):
                x[rows] = self.run_layers(step, u, memory, weights, rows).x
        self.watch.ran(step, u, ran.x)
        return Outcome(step, u, ran.x, ran.keys_values, self.states(step, ran, memory), records)

    def going_on(self, log_weights: Tensor) -> Tensor | None:
        """The rows [b] whose token thinks a cell [B, 1, 1] of a cache; None: all of them, or nobody may stop.

        The one place where the host waits for what was thought.
        """
        if self.halting is None or not self.halting.stops or not self.sight.in_place:
            return None
        rows = (log_weights[:, 0, 0] > HIDDEN).nonzero()[:, 0]
        return None if len(rows) == len(log_weights) else rows

    def run_layers(
        self,
        step: Step,
        u: Tensor,
        memory: Tensor | None,
        weights: Tensor | None,
        rows: Tensor | None = None,
    ) -> Ran:
        """Run a step's layers over its inputs, all rows or some."""
        angles, keys = self.angles_of(step), None
        if weights is not None and self.halting is not None and self.stretch.traits.weighed:
            keys = self.halting.key_weights(weights)
        if rows is not None:
            u, (memory, keys) = u[rows], (None if x is None else x[rows] for x in (memory, keys))
            if angles is not None and self.tokens.positions.dim() > 1:
                angles = Rotary(*(angle[rows] for angle in angles))
        layers, everything = range(*step.layers), range(len(step.columns))
        read = None if step.read == everything else slice(step.read.start, step.read.stop)
        inner = self.sight.of(step, everything, keys, rows)
        outer = inner if read is None else self.sight.of(step, step.read, keys, rows)
        views = [(outer if layer == layers[-1] else inner)(layer) for layer in layers]
        return self.decoder.run(
            u, angles, views, layers.start, read, step.keep and not self.sight.in_place,
            self.stretch.traits.tap if step.feeds else None, self.method.injections, memory,
            None if type(self.watch).attended is Watch.attended else lambda *seen: self.watch.attended(step, *seen),
        )  # fmt: skip

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

    def inputs(self, step: Step) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the cells of a step read, what they are fed, [B, L, n, d] each, and their records [B, L, n, r].

        None stands for what nobody asks for or what is not there.
        """
        if step.layers[0] == self.stretch.traits.span[1]:
            return self.outcomes.gather(step.base, Outcome.stream_of), None, None
        pieces, memories, records = [], [], []
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
            if self.halting is not None:
                records.append(self.records(self.halting, slots, before, u))
        u, memory = _cat(pieces, 2), None
        if self.method.remembers and any(m is not None for m in memories):
            pairs = zip(pieces, memories, strict=True)
            memory = _cat([torch.zeros_like(piece) if m is None else m for piece, m in pairs], 2)
        return u, memory, _cat(records, 2) if records else None

    def records(self, halting: Halting, slots: range, before: Before | None, u: Tensor) -> Tensor:
        """Records [B, L, n, r] of cells that read u: zero in slot 0, where every token begins."""
        if before is None or slots[0] == 0:
            wide = torch.promote_types(u.dtype, torch.float32)
            return u.new_zeros(*u.shape[:3], halting.size, dtype=wide)
        found: Tensor = halting(self.decoder, slots, before)
        return found

    def before(self, step: Step, columns: range, fed: Sequence[Fed]) -> Before:
        """The cells that some columns are fed by, all from the same place before."""
        if fed[0].feed.back:
            cells = [self.cell_before(step, step.columns[c], f) for c, f in zip(columns, fed, strict=True)]
            return cells[0] if len(cells) == 1 else _together(cells)
        sources = [f.source for f in fed]
        if None in sources:
            return Before(*(part[:, :, None] for part in self.state.last[fed[0].feed.slot]))
        inputs, states = (self.outcomes.gather(sources, of) for of in (Outcome.inputs_of, Outcome.state_of))
        records = None if self.halting is None else self.outcomes.gather(sources, Outcome.records_of)
        return Before(inputs, states, records=records)

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

    def reading(self, slots: tuple[Source, ...], weight: float) -> Prediction:
        """What is read off a sweep: the state of the slot that predicts, or the mixture of all slots' states."""
        if self.halting is None or len(slots) == 1:
            return Prediction(self.decoder.norm(self.predicting(slots)), weight)
        states = self.decoder.norm(self.outcomes.gather(slots, Outcome.stream_of))
        weights = self.outcomes.gather(slots, Outcome.records_of)[..., 0].exp()
        if self.tokens.alive is not None:
            index = torch.arange(len(slots), device=weights.device)
            weights = weights * (index < self.tokens.alive[..., None])
        shares = self.halting.shares(weights)
        return Prediction((shares[..., None] * states).sum(2).to(states.dtype), weight, weights)

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
                k, v = (interleave(list(parts), 2) for parts in zip(*columns, strict=True))
                state.append(layer, k, v)
        for slot, row, source in self.stretch.leaves:
            pair = self.pair(slot, source)
            if self.tokens.alive is None or row != -1:
                inputs, x = (part[:, row].unsqueeze(1) for part in pair)
            else:
                inputs, x = self.not_padding(pair, state.last.get(slot), self.tokens.alive > 0)
            state.last[slot] = inputs, x
        if done:
            present = (t if t is None else t[:, :done] for t in (self.tokens.documents, self.tokens.alive))
            olds = (state.documents, state.alive)
            state.documents, state.alive = (joined(old, new) for old, new in zip(olds, present, strict=True))
            state.positions += done

    def not_padding(
        self, pair: Sequence[Tensor], had: Sequence[Tensor] | None, real: Tensor
    ) -> Sequence[Tensor]:
        """Of input and state [B, L, d] those [B, 1, d] of each row's last cell that is no padding, where `real` [B, L] says
        so; a row without any keeps what it had.
        """
        place = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(dim=1)[:, None, None]
        found = [part.gather(1, (place - 1).clamp(min=0).expand(-1, 1, part.shape[-1])) for part in pair]
        if had is None:
            return found
        return [torch.where(place > 0, new, old) for new, old in zip(found, had, strict=True)]


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
    inputs, states = (torch.cat(list(parts), dim=2) for parts in zip(*(b[:2] for b in cells), strict=True))
    known = [torch.as_tensor(b.known, device=states.device).expand_as(b.states[..., :1]) for b in cells]
    return Before(inputs, states, torch.cat(known, dim=2))


def _range(slots: list[int]) -> range:
    step = slots[1] - slots[0] if len(slots) > 1 else 1
    return range(slots[0], slots[-1] + 1, step)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
