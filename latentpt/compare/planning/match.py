"""The size or the length at which an arm meets a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from latentpt.compare.config import Spending
from latentpt.config import build
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Head
from latentpt.run import RunConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

EMBED_SCALE = "thoughts.embed_scale"

Use = Callable[[int], float]
"""What an arm uses of the budget, in its unit, when it is trained for a number of steps."""


class Count(NamedTuple):
    """How large a model is."""

    parameters: int
    """Trainable parameters."""
    body_parameters: int
    """Of these, the ones outside embeddings and head."""
    repeated_parameters: int
    """Of these, the ones of layers that every slot runs."""
    slots: int
    """Slots of a position."""
    kv_bytes_per_token: int
    """Keys and values of one token, all slots, in 16 bits."""


def count(model: ModelConfig, thoughts: ThoughtsConfig) -> Count:
    """Sizes of a model, counted without allocating it."""
    with torch.device("meta"):
        built = LanguageModel(model, thoughts)

    def outside_vocabulary(module: nn.Module) -> int:
        mine = (
            0 if isinstance(module, nn.Embedding | Head) else sum(p.numel() for p in module.parameters(False))
        )
        return mine + sum(map(outside_vocabulary, module.children()))

    first, stop = built.method.span
    slots = built.method.slots
    layers = slots * (stop - first) + model.num_layers - (stop - first)
    return Count(
        sum(parameter.numel() for parameter in built.parameters()),
        outside_vocabulary(built),
        sum(map(outside_vocabulary, built.decoder.blocks[first:stop])),
        slots,
        2 * 2 * layers * model.kv_heads * model.head_width,
    )


def equally_large(
    model: ModelConfig, thoughts: ThoughtsConfig, parameters: int, kv_bytes: int
) -> ModelConfig:
    """The model of the same depth and width with as many key and value heads, and as wide an MLP, as bring it nearest to
    a number of KV bytes per token and of parameters."""
    heads = [h for h in range(1, model.num_heads + 1) if model.num_heads % h == 0]
    sized = [rebuilt(model, num_kv_heads=h) for h in heads]
    fewer = min(sized, key=lambda m: abs(count(m, thoughts).kv_bytes_per_token - kv_bytes))
    narrow, wide = (count(rebuilt(fewer, intermediate_size=n), thoughts).parameters for n in (8, 16))
    return rebuilt(fewer, intermediate_size=8 * max(1, 1 + round((parameters - narrow) / (wide - narrow))))


def steps_within(amount: float, use: Use) -> int:
    """The number of steps, at least one, whose use comes nearest to the amount; `use` must grow with the steps."""
    most = 1
    while use(most) < amount:
        most *= 2
    above = 1 + bisect_left(range(1, most + 1), amount, key=use)
    return min((max(1, above - 1), above), key=lambda steps: abs(use(steps) - amount))


def nearest_size(
    model: ModelConfig, spend: Spending, target: float, flops: Callable[[ModelConfig], float]
) -> ModelConfig:
    """The model with the number of layers, or of heads, whose FLOPs come nearest to `target`."""

    def candidates() -> Iterator[tuple[float, ModelConfig]]:
        for size in range(1, 100_000):
            try:
                candidate = grown(model, spend, size)
            except ValueError:
                continue
            counted = flops(candidate)
            yield abs(counted / target - 1), candidate
            if counted > target:
                return

    return min(candidates(), key=lambda pair: pair[0])[1]


def grown(model: ModelConfig, spend: Spending, size: int) -> ModelConfig:
    """The model with `size` layers, or with `size` heads of the same width (and an MLP of the same proportion).

    Raises:
        ValueError: the model groups its key and value heads in a way that `size` heads cannot keep.
    """
    return rebuilt(model, num_layers=size) if spend == "layers" else with_heads(model, size)


def with_heads(model: ModelConfig, size: int) -> ModelConfig:
    """The model with `size` heads of the same width and an MLP of the same proportion; raises ValueError as `grown`."""
    width = size * model.head_width
    wider: dict[str, int] = {"num_heads": size, "hidden_size": width}
    if model.num_kv_heads:
        if size * model.num_kv_heads % model.num_heads:
            raise ValueError(f"{size} heads cannot share key and value heads as {model.num_heads} do")
        wider["num_kv_heads"] = size * model.num_kv_heads // model.num_heads
    if model.intermediate_size:
        wider["intermediate_size"] = round(model.intermediate_size * width / model.hidden_size / 16) * 16
    return rebuilt(model, **wider)


def rebuilt(model: ModelConfig, **changes: int) -> ModelConfig:
    """A copy with some fields changed and all of them checked again."""
    return ModelConfig.model_validate({**model.model_dump(), **changes})


def with_model(run: RunConfig, model: ModelConfig, keep_scale: bool) -> RunConfig:
    """The run with another model, and the embedding scale that belongs to its width."""
    values = run.model_dump()
    values["model"] = model.model_dump()
    if not keep_scale:
        values["thoughts"]["embed_scale"] = math.sqrt(2.5 * model.hidden_size)
    return build(RunConfig, values)
