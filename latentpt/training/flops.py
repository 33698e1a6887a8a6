"""Counted FLOPs: a sum over the sets of cells that a schedule runs.

One multiply-add is two FLOPs. Matrix products and attention are counted, element-wise work is not. A backward pass
costs twice its forward; attention counts visible pairs only (4 d FLOPs a pair and layer, forward). The last layer
counts queries, output and MLP only for cells somebody reads, as the trunk computes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.registry import make_method
from latentpt.thoughts.schedule import Schedule, Sweep


class CellSet(NamedTuple):
    """Cells that run through the trunk together, and what they see."""

    cells: int
    """Cells in the set, over all positions of one row."""
    read: int
    """Cells whose result the last layer computes."""
    pairs: int
    """Visible (query, key) pairs of all cells."""
    read_pairs: int
    """Visible pairs of the cells that are read."""
    grad: bool
    """Whether gradient flows through the set."""


class Cost(NamedTuple):
    """FLOPs and trunk passes per text token."""

    forward: float
    """Forward FLOPs per token."""
    backward: float
    """Backward FLOPs per token; twice the forward of what carries gradient."""
    slots: float
    """Cells through the trunk per token (vanilla: 1)."""

    @property
    def total(self) -> float:
        """Forward and backward FLOPs per token."""
        return self.forward + self.backward


def cell_sets(method: ThoughtMethod, schedule: Schedule, length: int) -> Iterator[CellSet]:
    """The sets of cells that `solvers.solve` runs for one row of `length` positions."""
    chunk = schedule.chunk or length
    for start in range(0, length, chunk):
        n = min(chunk, length - start)
        stale = False
        for sweep, following in zip(schedule.sweeps, (*schedule.sweeps[1:], None), strict=True):
            if sweep.stride == 1:
                yield _full_pass(sweep, following, n, start * method.slots)
                stale = following is not None and following.stride > 1
            else:
                yield from _columns(method, sweep, following, n, start, stale)
                stale = True


def _full_pass(sweep: Sweep, following: Sweep | None, n: int, prefix: int) -> CellSet:
    """All n * slots cells causally; see solvers._Stretch._full_pass for what is read."""
    slots, cells = sweep.slots, n * sweep.slots
    pairs = cells * (cells + 1) // 2 + cells * prefix
    if slots == 1 or (following is not None and following.slots > slots):
        return CellSet(cells, cells, pairs, pairs, sweep.grad)
    first, stop = (slots - 1, slots) if following is None else (0, slots - 1)
    # cell (t, s) sees t * slots + s + 1 cells of its own chunk and the prefix
    read_pairs = sum(slots * n * (n - 1) // 2 + n * (s + 1 + prefix) for s in range(first, stop))
    return CellSet(cells, n * (stop - first), pairs, read_pairs, sweep.grad)


def _columns(
    method: ThoughtMethod, sweep: Sweep, following: Sweep | None, n: int, start: int, stale: bool
) -> Iterator[CellSet]:
    """Column after column: own and fresh earlier columns j <= i, stale later columns j < i, the prefix."""
    slots, sees = sweep.slots, method.visibility.sees
    every = min(sweep.stride // slots, n)
    for number in range(slots * every):
        slot = number % slots
        rows = -(-(n - number // slots) // every)
        earlier = sum(sees(slot, j % slots) for j in range(number))
        later = stale * sum(sees(slot, j % slots) for j in range(number + 1, slots * every))
        prefix = start * sum(sees(slot, j) for j in range(method.slots))
        pairs = (1 + earlier) * rows * (rows + 1) // 2 + later * rows * (rows - 1) // 2 + rows * prefix
        wanted = following is None if slot == slots - 1 else method.feedback
        yield CellSet(rows, rows * wanted, pairs, pairs * wanted, sweep.grad)


def schedule_cost(model: ModelConfig, method: ThoughtMethod, schedule: Schedule, length: int) -> Cost:
    """FLOPs per token of one forward and backward under a schedule, head included."""
    forward = backward = slots = 0.0
    for cells in cell_sets(method, schedule, length):
        flops = _trunk_flops(model, cells)
        forward += flops
        backward += 2 * flops * cells.grad
        slots += cells.cells
    forward, backward, slots = forward / length, backward / length, slots / length
    for sweep in schedule.sweeps:
        made = method.latent_flops(model) * (sweep.slots - 1)
        forward += made
        backward += 2 * made * sweep.grad
    head = 2 * model.hidden_size * model.vocab_size
    return Cost(forward + head, backward + 2 * head, slots)


def _trunk_flops(model: ModelConfig, cells: CellSet) -> float:
    d, heads = model.hidden_size, model.num_heads * model.head_width
    query = 2 * d * heads
    key_value = 2 * d * 2 * model.kv_heads * model.head_width
    out = 2 * heads * d
    mlp = 2 * d * model.mlp_size * (3 if model.activation == "swiglu" else 2)
    pair = 4 * heads  # q k^T and p v
    full = cells.cells * (query + key_value + out + mlp) + pair * cells.pairs
    last = cells.cells * key_value + cells.read * (query + out + mlp) + pair * cells.read_pairs
    return (model.num_layers - 1) * full + last


def training_cost(
    model: ModelConfig, thoughts: ThoughtsConfig, length: int, steps: int | None = None
) -> Cost:
    """Mean cost per token of training on rows of `length` tokens: over the K that may be drawn, and, where a curriculum
    changes the schedule, over the run's `steps` (None: the cost after its last phase)."""
    method = make_method(thoughts, model)
    ends = [0, *(phase.until_step for phase in thoughts.curriculum)]
    if steps is None or not thoughts.curriculum:
        stretches = [(1.0, ends[-1])]
    else:
        bounds = [*(min(end, steps) for end in ends), steps]
        stretches = [((b - a) / steps, a) for a, b in itertools.pairwise(bounds) if b > a]
    weighted = [
        (share * weight, schedule_cost(model, method, schedule, length))
        for share, first in stretches
        for weight, schedule in method.choices(first)
    ]
    return Cost(*(sum(w * cost[field] for w, cost in weighted) for field in range(len(Cost._fields))))


def training_flops_per_token(
    model: ModelConfig, thoughts: ThoughtsConfig, length: int, steps: int | None = None
) -> float:
    """Forward and backward FLOPs per text token of training."""
    return training_cost(model, thoughts, length, steps).total


def inference_flops_per_token(model: ModelConfig, thoughts: ThoughtsConfig, length: int) -> float:
    """FLOPs per token of exact decoding, averaged over a context growing to `length` tokens."""
    method = make_method(thoughts, model)
    return schedule_cost(model, method, method.exact_schedule(), length).forward
