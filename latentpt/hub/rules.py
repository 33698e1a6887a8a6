"""Re-layouts of parameters between ours and an architecture's.

A `Rule` ties one parameter of ours to one or several of theirs by a linear re-layout (concatenation, transposition,
permutation of rows), so gradients and optimizer states travel by the same rules as weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.hub.keys import Keys
from latentpt.modeling.config import ModelConfig


class Rule(NamedTuple):
    """One parameter of ours made of some of theirs, and back."""

    ours: str
    theirs: tuple[str, ...]
    to_ours: Callable[[list[Tensor]], Tensor]
    to_theirs: Callable[[Tensor], list[Tensor]]


class Layout(NamedTuple):
    """One Hugging Face architecture."""

    read_config: Callable[[Keys], dict[str, Any]]
    """Fields of ModelConfig, vocab_size aside."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[Rule]]
    prefix: str
    """Of the names of everything but the head; files written without the head may lack it."""
    scaled: bool = False
    """Whether the stock class multiplies embeddings by sqrt(d)."""


def same(ours: str, theirs: str) -> Rule:
    """The same tensor under another name."""
    return Rule(ours, (theirs,), lambda tensors: tensors[0], lambda tensor: [tensor])


def transposed(ours: str, theirs: str) -> Rule:
    """GPT-2's Conv1D keeps weights as [in, out]."""
    return Rule(ours, (theirs,), lambda tensors: tensors[0].T, lambda tensor: [tensor.T])


def stacked(ours: str, theirs: list[str], rows: list[int]) -> Rule:
    """Their tensors one under the other."""
    return Rule(
        ours, tuple(theirs), lambda tensors: torch.cat(tensors), lambda tensor: list(tensor.split(rows))
    )


def head_by_head(ours: str, theirs: str, config: ModelConfig) -> Rule:
    """GPT-NeoX stores q, k, v of head 0, then of head 1, ..; ours are all q, all k, all v."""
    heads, width = config.num_heads, config.head_width

    def to_ours(tensors: list[Tensor]) -> Tensor:
        return tensors[0].unflatten(0, (heads, 3, width)).transpose(0, 1).flatten(0, 2)

    def to_theirs(tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(0, (3, heads, width)).transpose(0, 1).flatten(0, 2)]

    return Rule(ours, (theirs,), to_ours, to_theirs)


def pairs(names: dict[str, str], suffixes: tuple[str, ...]) -> list[Rule]:
    """Modules whose parameters have the same names in both."""
    return [same(f"{ours}.{s}", f"{theirs}.{s}") for ours, theirs in names.items() for s in suffixes]


def parts(biased: bool) -> tuple[str, ...]:
    """Names of a linear layer's parameters."""
    return ("weight", "bias") if biased else ("weight",)
