"""Schedules: how the one recurrence of all thought methods is solved in parallel, as plain data.

Every method is a recurrence over cells (t, s), position t and slot s, in the order i = t S + s. Sequential decoding
solves it cell by cell; a schedule solves or approximates it with a few parallel passes:

    sweep   one walk over all cells in `stride` sets; set r holds the cells i = r, r + stride, r + 2 stride, ..
            stride 1 is one pass over everything (Jacobi), stride S goes slot by slot (Gauss-Seidel)
    chunk   the sweeps are done for one block of positions after another, each seeing the exact states of those
            before; a chunk of one position is sequential decoding

`latentpt.thoughts.compile` makes steps of a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Sweep:
    """One walk over the cells of the first `slots` slots."""

    slots: int
    """Slots taking part; the growing first passes of Jacobi use fewer than all."""
    stride: int = 1
    """Number of sets: 1 = all cells at once, `slots` = slot by slot, m `slots` = slot by slot of every m-th position."""
    grad: bool = True
    """Whether gradient flows through this sweep."""
    weight: float | None = None
    """Factor on the nats of this sweep's predictions in the loss; None: 1 for the last sweep and 0 for the others."""


@dataclass(frozen=True)
class Schedule:
    """Sweeps in order, done for every chunk of positions."""

    sweeps: tuple[Sweep, ...]
    chunk: int | None = None
    """Positions solved together; None means all, 1 is sequential decoding."""
    key: int | None = field(default=None, compare=False)
    """What the random numbers of a training step's forward follow from (`thoughts.chance`); None: it draws none."""

    @property
    def slots(self) -> int:
        """Slots per position in use: those of the last sweep, which predicts."""
        return self.sweeps[-1].slots

    @property
    def refinements(self) -> int:
        """Sweeps over all slots beyond the first such: Jacobi's K."""
        return sum(sweep.slots == self.slots for sweep in self.sweeps) - 1

    @property
    def passes(self) -> int:
        """Trunk passes per position, forward: cells of all sweeps."""
        return sum(sweep.slots for sweep in self.sweeps)

    def truncated(self, bptt_passes: int | None) -> Schedule:
        """The same schedule with gradient through the last `bptt_passes` sweeps only (None: all)."""
        if bptt_passes is None:
            return self
        first = len(self.sweeps) - bptt_passes
        sweeps = (replace(sweep, grad=index >= first) for index, sweep in enumerate(self.sweeps))
        return replace(self, sweeps=tuple(sweeps))

    def weighed(self, weights: Sequence[float]) -> Schedule:
        """The same schedule with these factors on the losses of its last sweeps, and 0 on those before them.

        A schedule of fewer sweeps takes the last ones, so scaled that their sum stays what it is.
        """
        last = weights[-len(self.sweeps) :]
        last = [weight * sum(weights) / sum(last) for weight in last]
        sweeps = [replace(sweep, weight=0.0) for sweep in self.sweeps[: len(self.sweeps) - len(last)]]
        sweeps += [replace(s, weight=w) for s, w in zip(self.sweeps[len(sweeps) :], last, strict=True)]
        return replace(self, sweeps=tuple(sweeps))


def one_pass(slots: int) -> Schedule:
    """A single pass over all cells: methods without feedback."""
    return Schedule((Sweep(slots),))


def by_slot(slots: int) -> Schedule:
    """Slot after slot, once: exact where a slot sees no later slot."""
    return Schedule((Sweep(slots, stride=slots),))


def jacobi(slots: int, refinements: int) -> Schedule:
    """The paper's recipe: N growing passes, K refinements, one last pass (PonderLM-2, arXiv 2509.23184, section 3)."""
    growing = tuple(Sweep(k) for k in range(1, slots))
    return Schedule((*growing, *(Sweep(slots) for _ in range(refinements + 1))))


def gauss_seidel(slots: int, sweeps: int) -> Schedule:
    """Slot after slot, repeatedly; one sweep is the stage-causal model, the fixed point the paper's."""
    return Schedule(by_slot(slots).sweeps * sweeps)


def strided(slots: int, every: int, refinements: int) -> Schedule:
    """A slot-by-slot sweep, then K sweeps over every m-th position in turn; m = length is sequential decoding."""
    return Schedule(
        (*by_slot(slots).sweeps, *(Sweep(slots, stride=every * slots) for _ in range(refinements)))
    )


def sequential(slots: int) -> Schedule:
    """Cell after cell: the ground truth that every other schedule approximates."""
    return Schedule((Sweep(slots, stride=slots),), chunk=1)
