"""Plans: which cells run together, what they read, see and leave, as data.

A *column* is the cells of one slot at every m-th position; a *step* runs some layers over a few columns at once. What
each is fed and sees names columns of earlier steps. `latentpt.thoughts.compile` makes plans of schedules,
`latentpt.thoughts.execute` runs them, `latentpt.thoughts.cost` adds them up; nobody else decides anything.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from latentpt.modeling.merge import Relation


class PlanError(ValueError):
    """A schedule asks for what nobody provides."""


class Visibility(Enum):
    """Which slots s' a slot s sees (of positions t' <= t; of its own position only what was thought before)."""

    CAUSAL = "every earlier slot"
    STAGE_CAUSAL = "s' <= s"
    SAME_SLOT = "s' = s"

    def sees(self, slot: int, other: int) -> bool:
        """Whether slot `slot` sees slot `other` of earlier positions."""
        if self is Visibility.SAME_SLOT:
            return other == slot
        return self is Visibility.CAUSAL or other <= slot


class Feed(NamedTuple):
    """What a slot is fed: the state of `slot` of the position `back` places before (0: its own)."""

    back: int
    slot: int | None
    """None: not a state, but the token's own stream as it enters the span, which waits for nobody."""


class Traits(NamedTuple):
    """What a plan needs to know of a method, for the slots in use."""

    visibility: Visibility
    feeds: tuple[Feed | None, ...]
    """Slot by slot."""
    layers: int
    """Layers of the decoder."""
    span: tuple[int, int]
    """Layers that are run again; those before run once on the token slot, those after once on the slot that predicts."""
    tap: int | None = None
    """States are the stream before this layer; None: the stream at the end of the span."""
    mixes: bool = False
    """Whether all slots predict together, each with a share of its token."""
    weighed: bool = False
    """Whether keys carry the log-weight of their cell, in a column of their own."""

    @property
    def slots(self) -> int:
        """Slots per position in use."""
        return len(self.feeds)

    def grid(self, layer: int) -> range:
        """The slots that have keys and values in a layer."""
        if layer < self.span[0]:
            return range(1)
        return range(self.slots) if layer < self.span[1] else range(self.slots - 1, self.slots)


class Column(NamedTuple):
    """The cells (t, slot) with t = first, first + every, .. below the length of the stretch."""

    first: int
    every: int
    slot: int

    def rows(self, length: int) -> int:
        """Number of its cells in a stretch of so many positions."""
        return -(-(length - self.first) // self.every)

    @property
    def order(self) -> tuple[int, int]:
        """Columns of one stride are thought in this order, row by row."""
        return self.first, self.slot


class Source(NamedTuple):
    """The latest values of a column: columns of earlier steps joined position by position, of which some are picked."""

    parts: tuple[tuple[int, int], ...]
    """(step, column in the step)."""
    first: int = 0
    every: int = 1


class Fed(NamedTuple):
    """Where the state before a column comes from."""

    feed: Feed
    source: Source | None
    """None: from what earlier stretches left; zero where they left nothing and the feed is from another position."""
    wraps: bool = False
    """The source lies one row earlier than the column: what earlier stretches left comes first."""


class Seen(NamedTuple):
    """A key column that a query column sees."""

    column: Column
    source: Source | None
    """None: the step's own keys."""
    relation: Relation


@dataclass(frozen=True)
class Step:
    """One run of some layers over a few columns."""

    columns: tuple[Column, ...]
    layers: tuple[int, int]
    """First layer and the one after the last."""
    base: tuple[Source, ...]
    """What each column's input is made from: the token's stream as it enters the span, or for layers after it the span's."""
    fed: tuple[Fed | None, ...]
    """The state that goes into each column."""
    sees: tuple[tuple[Seen, ...], ...]
    """What each column sees in this stretch; the cells of earlier stretches come on top."""
    number: int
    """By which sources name it; steps nobody needs are left out, so numbers have gaps."""
    sweep: int
    """Number of the sweep it belongs to."""
    refines: bool = False
    """Whether the sweep before went over the same slots."""
    grad: bool = True
    """Whether gradient flows through it."""
    read: range = range(0)
    """Columns whose outcome somebody wants: the last layer computes queries, output and MLP for these alone."""
    feeds: range = range(0)
    """Columns whose states somebody is fed."""
    keep: bool = False
    """Whether somebody sees its keys and values later."""
    done: tuple[int, ...] = ()
    """Earlier steps that nobody needs any more."""

    @functools.cached_property
    def flat(self) -> bool:
        """Whether its cells, row by row, see each other as one causal sequence, and nothing else of the stretch."""
        own = [[seen.column for seen in column if seen.source is None] for column in self.sees]
        alone = all(len(columns) == len(seen) for columns, seen in zip(own, self.sees, strict=True))
        return alone and all(columns == list(self.columns) for columns in own)


EMBEDDING = Step((Column(0, 1, 0),), (0, 0), (), (), (), number=-1, sweep=-1, read=range(1))
"""What is there before the first step: every token's embedding."""


class Reading(NamedTuple):
    """What is read off a sweep: the streams [B, L, d] of the slot that predicts, or of all slots."""

    slots: tuple[Source, ...]
    weight: float


@dataclass(frozen=True)
class Stretch:
    """The plan of one stretch of positions."""

    traits: Traits
    length: int
    steps: tuple[Step, ...]
    readings: tuple[Reading, ...]
    """Of the sweeps that carry loss, the last sweep's at the end."""
    leaves: tuple[tuple[int | None, int, Source], ...]
    """(slot or None for the token's own stream, row, its latest stream), which the next stretch is fed."""
    keys: tuple[tuple[Source, ...], ...]
    """Layer by layer the latest keys and values of the layer's slots, where the next stretch sees them."""
    completes: int
    """Positions that are thought through to their last slot."""

    @functools.cached_property
    def one_row(self) -> bool:
        """Whether every column is a single cell."""
        return all(column.rows(self.length) == 1 for step in self.steps for column in step.columns)


class Plan(NamedTuple):
    """The stretches of a schedule, each on the exact states of those before."""

    traits: Traits
    stretches: tuple[tuple[int, Stretch], ...]
    """(first position, its plan)."""
