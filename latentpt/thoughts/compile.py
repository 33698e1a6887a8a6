"""Schedules compiled into plans: which cells run together, what they read, see and leave, is decided here.

While the steps are laid out, a board remembers which step wrote each column last, so what a step is fed and sees follows
from the method's traits alone. Walking back, a step computes only what a later one reads; a step nobody needs is left
out.

With S = 2, what the cells of column 1 (q) see of column 0 (fresh, o) and, for stride 4, of columns 2 and 3 (stale, .):

    cell        (0,0) (0,1) (1,0) (1,1) (2,0) (2,1) (3,0) (3,1)
    stride 2      o     q     o     q     o     q     o     q      row k sees rows <= k of columns 0 and 1
    stride 4      o     q     .     .     o     q     .     .      and rows < k of columns 2 and 3
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from latentpt.modeling.merge import Relation
from latentpt.thoughts.plan import (
    EMBEDDING,
    Column,
    Fed,
    Plan,
    PlanError,
    Reading,
    Seen,
    Source,
    Step,
    Stretch,
    Traits,
)  # fmt: skip
from latentpt.thoughts.schedule import Schedule, Sweep


def sets(sweep: Sweep, length: int) -> Iterator[tuple[Column, ...]]:
    """The columns of each set of a sweep, in order; raises PlanError for a stride that mixes slots unevenly."""
    slots, stride = sweep.slots, sweep.stride
    if stride <= slots and slots % stride == 0:
        for residue in range(stride):
            yield tuple(Column(0, 1, slot) for slot in range(residue, slots, stride))
    elif stride % slots == 0:
        every = min(stride // slots, length)
        for first in range(every):
            yield from ((Column(first, every, slot),) for slot in range(slots))
    else:
        raise PlanError(
            f"a sweep of stride {stride} over {slots} slots mixes slots unevenly; "
            f"the nearest stride that does not is {max(1, round(stride / slots)) * slots}"
        )


def _together(
    found: Iterable[tuple[Column, ...]], traits: Traits, length: int
) -> Iterator[tuple[Column, ...]]:
    """A single position's sets in the order of slots, those joined of which no cell is fed by another: one step is exact."""
    waiting: tuple[Column, ...] = ()
    for columns in found:
        slots = {column.slot for column in waiting}
        feeds = (traits.feeds[column.slot] for column in columns)
        fed = any(feed is not None and not feed.back and feed.slot in slots for feed in feeds)
        if waiting and (length > 1 or fed or min(columns).slot < max(slots)):
            yield waiting
            waiting = ()
        waiting += columns
    yield waiting


@functools.lru_cache(maxsize=256)
def compile_stretch(
    traits: Traits, sweeps: tuple[Sweep, ...], length: int, keep: bool = False, read_all: bool = False
) -> Stretch:
    """Lay out the sweeps over a stretch of `length` positions.

    `keep` asks for keys and values of all cells, for what comes after; `read_all` reads every slot and not only the one
    that predicts. Raises PlanError in one sentence where a sweep needs what no earlier one provides.
    """
    layout = _Layout(traits, length)
    readings: list[Reading] = []
    gradient = any(sweep.grad for sweep in sweeps)
    start, stop = traits.span
    if start:
        layout.add((Column(0, 1, 0),), (0, start), 0, grad=gradient)
    for before, after in itertools.pairwise(sweeps):
        if after.slots < before.slots:
            raise PlanError(
                f"a sweep over {after.slots} slots follows one over {before.slots}; slots only grow"
            )
    for number, sweep in enumerate(sweeps):
        refines = number > 0 and sweeps[number - 1].slots == sweep.slots
        for columns in _together(sets(sweep, length), traits, length):
            layout.add(columns, (start, stop), number, refines, sweep.grad)
        last = number == len(sweeps) - 1
        weight = float(last) if sweep.weight is None else sweep.weight
        if weight or last:
            suffix = stop < traits.layers
            if suffix:
                if sweep.slots < traits.slots:
                    raise PlanError(
                        f"a sweep over {sweep.slots} of {traits.slots} slots of a span of layers carries no loss"
                    )
                layout.add(
                    (Column(0, 1, sweep.slots - 1),), (stop, traits.layers), number, refines, sweep.grad
                )
            everything = (read_all or traits.mixes) and not suffix
            slots = range(0 if everything else sweep.slots - 1, sweep.slots)
            readings.append(Reading(tuple(layout.whole(traits.layers, slot) for slot in slots), weight))
    leaves = {feed.slot for feed in traits.feeds if feed is not None and feed.back}
    left = tuple((slot, -1, layout.whole(*layout.place(slot))) for slot in leaves)
    keys = layout.all_keys() if keep else ()
    stretch = Stretch(traits, length, tuple(layout.steps), tuple(readings), left, keys, length)
    return _needed(stretch, len(sweeps) - 1 if read_all else None)


@functools.lru_cache(maxsize=256)
def compile_cells(traits: Traits, runs: tuple[tuple[int, ...], ...], known: tuple[int, ...] = ()) -> Stretch:
    """A plan that decodes single cells: each run is a tuple of cells thought at once, counted from slot 0 of the first position.

    With S slots, cell S is slot 0 of the next position. `known` are slots whose states an earlier plan left; what is
    read, and left for a later plan, are the cells of the last run.
    """
    slots = traits.slots
    length = max(cell // slots for run in runs for cell in run) + 1
    layout = _Layout(traits, length, known)
    for number, run in enumerate(runs):
        columns = tuple(Column(cell // slots, length, cell % slots) for cell in run)
        layout.add(columns, traits.span, number)
    step = len(layout.steps) - 1
    readings = tuple(Reading((Source(((step, index),)),), 1.0) for index in range(len(runs[-1])))
    left = tuple((cell % slots, 0, readings[i].slots[0]) for i, cell in enumerate(runs[-1]))
    completed = (runs[-1][0] + 1) // slots
    return _needed(Stretch(traits, length, tuple(layout.steps), readings, left, (), completed))


class _Board:
    """Who wrote each column last, by (layer, slot) and residue of the stride at hand."""

    def __init__(self) -> None:
        # whole columns, in the stride they were written in
        self.written: dict[tuple[int, int], list[Source]] = {}
        self.now: dict[tuple[int, int], list[Source | None]] = {}

    def put(self, key: tuple[int, int], column: Column, source: Source) -> None:
        self.now.setdefault(key, [None] * column.every)[column.first] = source

    def latest(self, key: tuple[int, int], residue: int) -> Source | None:
        return self.now[key][residue] if key in self.now else None

    def restride(self, every: int) -> None:
        """Name the same cells by the residues of another stride."""
        for key, sources in self.now.items():
            whole = [
                s for s in sources if s is not None and len(s.parts) == 1 and (s.first, s.every) == (0, 1)
            ]
            if len(whole) == len(sources):
                self.written[key] = whole
            if len(sources) != every:
                self.now[key] = [_picked(self.written[key], residue, every) for residue in range(every)]


def _picked(columns: Sequence[Source], residue: int, every: int) -> Source:
    """The positions residue, residue + every, .. of columns that together hold all positions in turn."""
    if every % len(columns):
        return Source(tuple(column.parts[0] for column in columns), residue, every)
    step, column = columns[residue % len(columns)].parts[0]
    return Source(((step, column),), residue // len(columns), every // len(columns))


class _Layout:
    """Steps as they are laid out, and the boards of their streams, by layer reached, and keys, by first layer."""

    def __init__(self, traits: Traits, length: int, known: tuple[int, ...] = ()) -> None:
        self.traits, self.length, self.known = traits, length, known
        self.steps: list[Step] = []
        self.streams, self.keys = _Board(), _Board()
        self.streams.put((0, 0), Column(0, 1, 0), Source(((EMBEDDING.number, 0),)))

    def add(
        self,
        columns: tuple[Column, ...],
        layers: tuple[int, int],
        sweep: int,
        refines: bool = False,
        grad: bool = True,
    ) -> None:
        """One more step; raises PlanError if a column is fed what nobody has thought."""
        core = layers == self.traits.span
        self.restride(columns[0].every)
        # The prefix and the core start from the token's stream, what follows from the stream the core left.
        slots = [c.slot if layers[0] == self.traits.span[1] else 0 for c in columns]
        base = [self._entering(layers[0], slot, c.first) for slot, c in zip(slots, columns, strict=True)]
        fed = tuple(self._fed(column) if core else None for column in columns)
        sees = tuple(tuple(self._seen(column, columns, layers[0])) for column in columns)
        number = len(self.steps)
        self.steps.append(Step(columns, layers, tuple(base), fed, sees, number, sweep, refines, grad))
        for index, column in enumerate(columns):
            source = Source(((number, index),))
            self.streams.put((layers[1], column.slot), column, source)
            self.keys.put((layers[0], column.slot), column, source)

    def restride(self, every: int) -> None:
        """Go on in another stride."""
        self.streams.restride(every)
        self.keys.restride(every)

    def place(self, fed_by: int | None) -> tuple[int, int]:
        """Layer and slot of the stream whence a feed comes."""
        start, stop = self.traits.span
        return (start, 0) if fed_by is None else (stop, fed_by)

    def whole(self, layer: int, slot: int) -> Source:
        """The latest stream of a slot at every position, before a layer."""
        self.restride(1)
        return self._entering(layer, slot, 0)

    def all_keys(self) -> tuple[tuple[Source, ...], ...]:
        """Layer by layer, the latest keys and values of every slot."""
        self.restride(1)
        found: list[tuple[Source, ...]] = []
        for first, stop in sorted({step.layers for step in self.steps}):
            slots = [self.keys.latest((first, slot), 0) for slot in self.traits.grid(first)]
            found += [tuple(source for source in slots if source is not None)] * (stop - first)
        return tuple(found)

    def _entering(self, layer: int, slot: int, residue: int) -> Source:
        found = self.streams.latest((layer, slot), residue)
        assert found is not None
        return found

    def _fed(self, column: Column) -> Fed | None:
        feed = self.traits.feeds[column.slot]
        if feed is None:
            return None
        residue = (column.first - feed.back) % column.every
        source = self.streams.latest(self.place(feed.slot), residue)
        if source is None and not feed.back and feed.slot not in self.known:
            raise PlanError(
                f"slot {column.slot} is fed the state of slot {feed.slot}, which no earlier sweep has thought; "
                f"begin with a sweep over fewer slots or with one that goes slot by slot"
            )
        return Fed(feed, source, wraps=column.first < feed.back)

    def _seen(self, query: Column, own: Sequence[Column], first_layer: int) -> Iterator[Seen]:
        """Columns in the order of thought: fresh where this sweep has written them, else as the sweep before left them."""
        for first in range(query.every):
            for slot in self.traits.grid(first_layer):
                if not self.traits.visibility.sees(query.slot, slot):
                    continue
                key = Column(first, query.every, slot)
                source = None if key in own else self.keys.latest((first_layer, slot), first)
                if key in own or source is not None:
                    yield Seen(key, source, Relation.CAUSAL if key.order <= query.order else Relation.STRICT)


def _needed(stretch: Stretch, all_of: int | None = None) -> Stretch:
    """Walk back from what is read, left and kept: what each step must compute, when it may be forgotten, who is not needed.

    Of the sweep `all_of` every outcome is wanted.
    """
    end, tap = stretch.traits.span[1], stretch.traits.tap
    outcomes: dict[int, set[int]] = defaultdict(set)
    feeding: dict[int, set[int]] = defaultdict(set)
    kept: set[int] = set()
    last_use: dict[int, int] = {}

    def want(source: Source | None, user: int, state: bool = False) -> None:
        for step, column in source.parts if source is not None else ():
            last_use.setdefault(step, user)  # users come from the last to the first
            if state:
                feeding[step].add(column)
            if not state or tap is None:
                outcomes[step].add(column)

    def keep(sources: Iterable[Source | None], user: int) -> None:
        for step in {step for source in sources if source is not None for step, _ in source.parts}:
            last_use.setdefault(step, user)
            kept.add(step)

    after = len(stretch.steps)
    for reading in stretch.readings:
        for source in reading.slots:
            want(source, after)
    for slot, _, source in stretch.leaves:
        want(source, after, state=slot is not None)
    keep((source for layer in stretch.keys for source in layer), after)
    steps: list[Step] = []
    for number, step in reversed(list(enumerate(stretch.steps))):
        if step.sweep == all_of:
            outcomes[number].update(range(len(step.columns)))
        wanted, feeds, (first, stop) = outcomes[number], feeding[number], step.layers
        if not wanted and not feeds and number not in kept:
            continue
        for base, fed in zip(step.base, step.fed, strict=True):
            want(base, number)
            if fed is not None:
                want(fed.source, number, state=fed.feed.slot is not None)
        keep((seen.source for column in step.sees for seen in column), number)
        read = _from_first_to_last(wanted)
        if stop == end and tap is not None and not wanted and number not in kept:
            stop, read = tap, range(len(step.columns))  # nobody wants more than the states
        done = [old for old, user in last_use.items() if user == number]
        if number not in last_use:
            done.append(number)
        steps.append(
            replace(
                step,
                read=read,
                layers=(first, stop),
                feeds=_from_first_to_last(feeds),
                keep=number in kept,
                done=tuple(done),
            )
        )
    return replace(stretch, steps=tuple(reversed(steps)))


def _from_first_to_last(columns: set[int]) -> range:
    return range(min(columns), max(columns) + 1) if columns else range(0)


def compile_plan(
    traits: Traits, schedule: Schedule, length: int, keep: bool = False, read_all: bool = False
) -> Plan:
    """The plan of a schedule over `length` positions; raises PlanError, see `compile_stretch`."""
    chunk = schedule.chunk or length
    stretches = []
    for start in range(0, length, chunk):
        size, more = min(chunk, length - start), start + chunk < length
        stretches.append((start, compile_stretch(traits, schedule.sweeps, size, keep or more, read_all)))
    return Plan(traits, tuple(stretches))
