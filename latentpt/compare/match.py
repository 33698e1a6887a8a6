"""How much an arm costs, and the size or length at which it meets a budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from latentpt.compare.config import Spending
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.training.flops import inference_flops_per_token, training_flops_per_token


class Costs(NamedTuple):
    """What one arm costs whatever its length."""

    parameters: int
    """Trainable parameters."""
    training_flops: float
    """FLOPs per token of training, forward and backward, averaged over the refinements it draws."""
    inference_flops: float
    """FLOPs per token of exact decoding."""


def costs(model: ModelConfig, thoughts: ThoughtsConfig, length: int) -> Costs:
    """Count an arm's parameters and FLOPs per token at samples of `length` tokens."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LanguageModel(model, thoughts).parameters())
    return Costs(
        parameters,
        float(training_flops_per_token(model, thoughts, length)),
        float(inference_flops_per_token(model, thoughts, length)),
    )


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


def nearest_size(
    model: ModelConfig, thoughts: ThoughtsConfig, length: int, spend: Spending, target: float, inference: bool
) -> ModelConfig:
    """The number of layers or heads whose FLOPs per token come nearest to `target` (in training or in inference)."""

    def candidates() -> Iterator[tuple[float, ModelConfig]]:
        for size in range(1, 100_000):
            try:
                candidate = grown(model, spend, size)
            except ValueError:
                continue
            counted = (inference_flops_per_token if inference else training_flops_per_token)(
                candidate, thoughts, length
            )
            yield abs(counted / target - 1), candidate
            if counted > target:
                return

    return min(candidates(), key=lambda pair: pair[0])[1]


def steps_within(budget: float, per_step: float) -> int:
    """Whole steps whose cost comes nearest to the budget, at least one."""
    return max(1, round(budget / per_step))
