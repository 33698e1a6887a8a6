"""Counted FLOPs: a sum over the steps of a plan.

One multiply-add is two FLOPs. Matrix products and attention are counted, element-wise work is not. A backward pass
costs twice its forward; attention counts visible pairs only (4 d FLOPs a pair and layer, forward). The last layer
of a step counts queries, output and MLP only for cells somebody reads, as the decoder computes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.merge import Relation
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.plan import Step, Stretch, compile_plan
from latentpt.thoughts.registry import make_method
from latentpt.thoughts.schedule import Schedule


class Cost(NamedTuple):
    """FLOPs and trunk passes per text token."""

    forward: float
    """Forward FLOPs per token."""
    backward: float
    """Backward FLOPs per token; twice the forward of what carries gradient."""
    slots: float
    """Cells through the trunk per token (vanilla: 1); a run of some layers counts as their share."""

    @property
    def total(self) -> float:
        """Forward and backward FLOPs per token."""
        return self.forward + self.backward


def schedule_cost(
    model: ModelConfig,
    method: ThoughtMethod,
    schedule: Schedule,
    length: int,
    reached: Sequence[float] | None = None,
) -> Cost:
    """FLOPs per token of one forward and backward under a schedule, head included.

    `reached` says slot by slot which share of all tokens thinks it, where decoding leaves the others out; None: all.
    """
    share = [1.0] * schedule.slots if reached is None else reached
    forward = backward = slots = 0.0
    for start, stretch in compile_plan(method.traits(schedule.slots), schedule, length).stretches:
        for step in stretch.steps:
            rows = [column.rows(stretch.length) * share[column.slot] for column in step.columns]
            flops = _layer_flops(model, stretch, step, start, share)
            made = zip(step.columns, step.fed, strict=True)
            flops += sum(
                rows[i] * method.injection_flops(model, c.slot)
                for i, (c, f) in enumerate(made)
                if f or c.slot
            )
            if (
                stretch.traits.mixes and method.halting is not None
            ):  # a token's record is made before it stops
                flops += sum(
                    c.rows(stretch.length) * share[max(c.slot - 1, 0)] * method.halting.flops(model, c.slot)
                    for c in step.columns
                )
            forward += flops
            backward += 2 * flops * step.grad
            slots += sum(rows) * (step.layers[1] - step.layers[0]) / model.num_layers
    forward, backward, slots = forward / length, backward / length, slots / length
    head = 2 * model.hidden_size * model.vocab_size
    heads = sum(1 for reading in stretch.readings if reading.weight)
    return Cost(forward + heads * head, backward + 2 * heads * head, slots)


def _layer_flops(
    model: ModelConfig, stretch: Stretch, step: Step, start: int, share: Sequence[float]
) -> float:
    """Forward FLOPs of a step's layers, after `start` positions."""
    d, heads = model.hidden_size, model.num_heads * model.head_width
    query = 2 * d * heads
    key_value = 2 * d * 2 * model.kv_heads * model.head_width
    out = 2 * heads * d
    mlp = 2 * d * model.mlp_size * (3 if model.activation == "swiglu" else 2)
    pair = 4 * (heads + model.num_heads * stretch.traits.weighed)  # q k^T and p v

    def thought(columns: range) -> float:
        return sum(c.rows(stretch.length) * share[c.slot] for c in (step.columns[i] for i in columns))

    def some(columns: range) -> float:
        pairs = sum(_pairs(stretch, step, index, start, share) for index in columns)
        return thought(columns) * (query + out + mlp) + pair * pairs

    everything = range(len(step.columns))
    first, stop = step.layers
    cells = thought(everything)
    return (stop - first) * cells * key_value + (stop - first - 1) * some(everything) + some(step.read)


def _pairs(stretch: Stretch, step: Step, index: int, start: int, share: Sequence[float]) -> float:
    """Visible (query, key) pairs of one column: what the plan says it sees, and the `start` positions before."""
    column, traits = step.columns[index], stretch.traits
    n = column.rows(stretch.length)
    seen = dict.fromkeys(Relation, 0.0)
    for key in step.sees[index]:
        seen[key.relation] += share[key.column.slot]
    grid = traits.grid(step.layers[0])
    before = start * sum(share[slot] for slot in grid if traits.visibility.sees(column.slot, slot))
    pairs = seen[Relation.CAUSAL] * n * (n + 1) / 2 + seen[Relation.STRICT] * n * (n - 1) / 2 + n * before
    return share[column.slot] * pairs


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


def inference_flops_per_token(
    model: ModelConfig, thoughts: ThoughtsConfig, length: int, reached: Sequence[float] | None = None
) -> float:
    """FLOPs per token of exact decoding, averaged over a context growing to `length` tokens; for `reached` see above."""
    method = make_method(thoughts, model)
    return schedule_cost(model, method, method.exact_schedule(), length, reached).forward
