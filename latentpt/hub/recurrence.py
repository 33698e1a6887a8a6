"""How a method thinks, as the data that an export's modeling file runs by (see the head of modeling_latentpt.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentpt.config import ConfigError, nearest
from latentpt.thoughts.adaptive import Reach, Tail
from latentpt.thoughts.compile import compile_stretch
from latentpt.thoughts.halting import Routed
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule, Sweep, sequential

READS = {
    "vanilla": ("token", "token"),
    "latent": ("token", "state"),
    "latent_mixture": ("token", "mixture"),
    "pause": ("token", "row"),
    "loop": ("token", "stream"),
    "mid_loop": ("token", "stream"),
    "ponder": ("token", "token+mixture"),
    "ponder_hidden": ("token", "input+state"),
    "sequential_hidden_decoding": ("token", "table"),
    "smear": ("shift", "shift"),
    "p2n": ("shift", "shift"),
    "dual_slot": ("token", "shift"),
    "hybrid": ("shift", "state"),
    "lrt": ("token", "token"),
    "fbt": ("fusion", "fusion"),
    "t2mlr": ("blend", "blend"),
    "alcot": ("token", "state"),
    "ponder3": ("token", "state"),
}
"""What slot 0 and what the slots after it make of what they are fed."""

EXPORTED = tuple(name for name in READS if name != "vanilla")
"""Methods that the modeling file thinks by."""

STREAMS = ("loop", "mid_loop", "smear", "p2n", "dual_slot")
"""Methods that hand on the stream as it is, whatever layer it left."""

ROUTERS: dict[type[Routed], str] = {Reach: "reach", Tail: "tail"}
"""Halting modules and their names there."""


def recurrence(model: LanguageModel) -> dict[str, Any]:
    """The recurrence's fields of the configuration; raises ConfigError for a method that the file does not know."""
    thoughts, method = model.thoughts, model.method
    if thoughts.method not in READS:
        raise ConfigError(
            f"thoughts.method = {thoughts.method} has no export yet; the nearest method that has is "
            f"{nearest(thoughts.method, EXPORTED)}"
        )
    first, later = READS[thoughts.method]
    if thoughts.cumulative:
        later = later.replace("token+", "input+")
    schedule, exact = method.schedule(), method.exact_schedule()
    return {
        "embed_scale": method.embed_scale,
        "visibility": method.visibility.name.lower(),
        "span": list(method.span),
        "feeds": [None if feed is None else list(feed) for feed in method.feeds(method.slots)],
        "reads": [first, *[later] * (method.slots - 1)],
        "hands_on": _hands_on(method),
        "order": _order(method, sequential(method.slots).sweeps[-1], 1),
        "text_order": None if exact.chunk else _order(method, exact.sweeps[-1], 2),
        "sweeps": _sweeps(schedule),
        "pause_token": thoughts.pause_token,
        "top_k_mixture": thoughts.top_k,
        "shift": thoughts.injection or ("gate" if thoughts.method == "hybrid" else "add"),
        "fusion": thoughts.fusion,
        "match_scale": thoughts.match_scale,
        "layer_memory": _layer_memory(method),
        **_halting(method),
    }


def _hands_on(method: ThoughtMethod) -> str:
    if method.config.method == "t2mlr":
        return "sum"
    ends = method.span[1] == method.layers
    return "norm" if ends and method.config.method not in STREAMS else "stream"


def _layer_memory(method: ThoughtMethod) -> str | None:
    if method.injections is None:
        return None
    return "shared" if method.config.shared_projections else "own"


def _halting(method: ThoughtMethod) -> dict[str, Any]:
    """The router; a threshold of confidence, which any model may be given when it is loaded, is none."""
    halting = method.halting
    if not isinstance(halting, Routed):
        return {"router": None}
    return {
        "router": ROUTERS[type(halting)],
        "threshold": halting.threshold,
        "thought_price": halting.price,
        "correctness": halting.power,
    }


def _order(method: ThoughtMethod, sweep: Sweep, length: int) -> list[list[int]]:
    """The slots that a sweep over so many positions runs together, group after group."""
    steps = compile_stretch(method.traits(), (sweep,), length, keep=True, read_all=True).steps
    return [[column.slot for column in step.columns] for step in steps if step.layers == method.span]


def _sweeps(schedule: Schedule) -> Sequence[Any] | None:
    """Order, gradient and weight of every sweep; None where training too goes position by position."""
    if schedule.chunk == 1:
        return None
    found = []
    for number, sweep in enumerate(schedule.sweeps, start=1):
        slots = list(range(sweep.slots))
        order = [slots] if sweep.stride == 1 else [[slot] for slot in slots]
        weight = float(number == len(schedule.sweeps)) if sweep.weight is None else sweep.weight
        found.append([order, sweep.grad, weight])
    return found
