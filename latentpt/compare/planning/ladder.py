"""The rules of a ladder: what a size is, and which learning rate and weight decay a run of that size gets."""

from __future__ import annotations

from latentpt.compare.config import LadderConfig
from latentpt.compare.planning.match import rebuilt, with_heads, with_model
from latentpt.config import build
from latentpt.run import RunConfig


def outward(sizes: list[int]) -> list[int]:
    """The sizes from the middle outward."""
    middle = len(sizes) // 2
    return [sizes[i] for i in sorted(range(len(sizes)), key=lambda i: abs(i - middle))]


def sized(ladder: LadderConfig, run: RunConfig, size: int, keep_scale: bool) -> RunConfig:
    """The run at one size of the ladder, with the embedding scale that belongs to its width unless it is kept."""
    model = run.model
    if ladder.hold == "depth":
        return with_model(run, with_heads(model, size), keep_scale)
    deep = rebuilt(model, num_layers=size)
    if ladder.hold == "width":
        return with_model(run, deep, keep_scale)
    aspect = ladder.aspect or model.hidden_size / model.num_layers
    heads = max(1, round(aspect * size / model.head_width))
    return with_model(run, with_heads(deep, heads), keep_scale)


def paced(ladder: LadderConfig, run: RunConfig, base: RunConfig, steps: int, factor: float) -> RunConfig:
    """The run with learning rate, weight decay and validations for its width and its number of steps.

    `factor` is what a sweep puts on the learning rate. Steps between validations are such that every run has as many.
    """
    lr = base.optimizer.lr * factor * (base.model.hidden_size / run.model.hidden_size) ** ladder.lr_power
    decay = base.optimizer.weight_decay
    if ladder.weight_decay == "timescale":
        decay *= base.optimizer.lr * base.steps / (lr * steps)
    values = run.model_dump()
    values["optimizer"] |= {"lr": lr, "weight_decay": decay}
    values["validation"]["every"] = max(1, -(-steps // ladder.points))
    return build(RunConfig, values)
