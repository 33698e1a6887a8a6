"""Norms: of the stream, and of queries and keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    """x / rms(x) (w + offset) over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__(width, eps=eps)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] -> [.., width]."""
        weight = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class AllHeadsNorm(RMSNorm):
    """RMSNorm over all heads of a position together."""

    def forward(self, x: Tensor) -> Tensor:
        """[.., H, D] -> [.., H, D]."""
        return super().forward(x.flatten(-2)).unflatten(-1, x.shape[-2:])


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the width of the stream."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    return RMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)


def make_head_norm(config: ModelConfig, heads: int) -> nn.Module | None:
    """The norm of queries or keys [.., heads, D], or None."""
    if config.qk_norm == "none":
        return None
    if config.qk_norm == "head":
        return RMSNorm(config.head_width, config.norm_eps, config.norm_offset)
    return AllHeadsNorm(heads * config.head_width, config.norm_eps, config.norm_offset)
