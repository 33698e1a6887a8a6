"""The size or the length at which an arm meets a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

import torch

from latentpt.compare.config import Spending
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

Use = Callable[[int], float]
"""What an arm uses of the budget, in its unit, when it is trained for a number of steps."""


def count_parameters(model: ModelConfig, thoughts: ThoughtsConfig) -> int:
    """Trainable parameters, counted without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LanguageModel(model, thoughts).parameters())


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
    if spend == "layers":
        return rebuilt(model, num_layers=size)
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
