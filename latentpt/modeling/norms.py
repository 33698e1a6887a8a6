"""Norms that can take in the sum before them: on a GPU the residual add and the norm are one pass over the stream.

Each reads its parameters inside its own forward, which is where ZeRO-3 gathers them.
"""

from __future__ import annotations

from typing import Any

from latentpt_kernels import add_norm, add_norms, dispatch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the width."""

    kind = "layer"

    def forward(self, x: Tensor, more: Tensor | None = None) -> Any:
        """norm(x) of x [.., d]; with `more` the pair norm(x + more), x + more."""
        normed, summed = add_norm(x, more, self.weight, self.bias, self.eps, self.kind)
        return normed if more is None else (normed, summed)


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the width (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    kind, bias = "rms", None

    def forward(self, x: Tensor, more: Tensor | None = None) -> Any:
        """norm(x) of x [.., d]; with `more` the pair norm(x + more), x + more."""
        normed, summed = add_norm(x, more, self.weight, None, self.eps or 0.0, self.kind)
        return normed if more is None else (normed, summed)


Norm = LayerNorm | RMSNorm


def make_norm(config: ModelConfig) -> Norm:
    """LayerNorm or RMSNorm over the width."""
    kind = LayerNorm if config.norm == "layer" else RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def after(norm: nn.Module, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """norm(x + more) and x + more, in one pass if the norm can."""
    if isinstance(norm, Norm):
        pair: tuple[Tensor, Tensor] = norm(x, more)
        return pair
    x = x + more
    return norm(x), x


def both(x: Tensor, first: nn.Module, second: nn.Module) -> tuple[Tensor, Tensor]:
    """Two norms of one stream x [.., d]: where the kernels run, and ZeRO-3 does not, from one normalised x."""
    if not isinstance(first, Norm) or not isinstance(second, Norm) or not dispatch.wanted(x):
        return first(x), second(x)
    if any(hasattr(p, "ds_id") for norm in (first, second) for p in norm.parameters()):
        return first(x), second(x)
    weights, biases = zip(*((norm.weight, norm.bias) for norm in (first, second)), strict=True)
    (of_first, of_second), _ = add_norms(x, None, weights, biases, first.eps or 0.0, first.kind)
    return of_first, of_second
