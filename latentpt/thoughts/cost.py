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
from latentpt.thoughts.compile import compile_plan
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.plan import Fed, Step, Stretch
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
            flops, constant = _layer_flops(model, stretch, step, start, share), 0.0
            carried = any(fed is not None and _there(fed, start) for fed in step.fed)
            for column, fed, n in zip(step.columns, step.fed, rows, strict=True):
                if fed is not None or column.slot:
                    flops += n * method.injection_flops(model, column.slot, carried)
                    if carried and fed is not None and not _learns(method, stretch, fed):
                        constant += n * method.memory_flops(model)
            if stretch.traits.mixes and method.halting is not None:
                for column in step.columns:  # the token has come as far as the slot before
                    n = column.rows(stretch.length) * share[max(column.slot - 1, 0)]
                    flops += n * method.halting.flops(model, column.slot)
            forward += flops
            backward += (2 * flops - constant) * step.grad
            slots += sum(rows) * (step.layers[1] - step.layers[0]) / model.num_layers
    forward, backward, slots = forward / length, backward / length, slots / length
    head = 2 * model.hidden_size * model.vocab_size
    heads = sum(1 for reading in stretch.readings if reading.weight)
    return Cost(forward + heads * head, backward + 2 * heads * head, slots)


def _there(fed: Fed, start: int) -> bool:
    """Whether a column's cells, or some of them, are fed anything, after `start` positions."""
    return fed.source is not None or not fed.feed.back or (fed.wraps and start > 0)


def _learns(method: ThoughtMethod, stretch: Stretch, fed: Fed) -> bool:
    """Whether gradient flows into the states that a column is fed."""
    if method.config.detach:
        return False
    grad = {step.number: step.grad for step in stretch.steps}
    return fed.source is None or any(grad.get(step, True) for step, _ in fed.source.parts)


def _layer_flops(
    model: ModelConfig, stretch: Stretch, step: Step, start: int, share: Sequence[float]
) -> float:
    """Forward FLOPs of a step's layers, after `start` positions."""
    d, heads = model.hidden_size, model.num_heads * model.head_width
    query = 2 * d * heads
    key_value = 2 * d * 2 * model.kv_heads * model.head_width
    out = 2 * heads * d
    mlp = 2 * d * model.mlp_size * (3 if model.gated else 2)
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
    if steps is None:
        thoughts = thoughts.model_copy(update={"curriculum": ()})
    else:
        thoughts = thoughts.over(steps)
    method = make_method(thoughts, model)
    ends = [0, *(int(phase.until_step) for phase in thoughts.curriculum)]
    if steps is None or not thoughts.curriculum:
        stretches = [(1.0, 0)]
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
