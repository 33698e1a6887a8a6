"""From logits to ids: greedy, temperature, top-k and top-p, with a random stream of its own for every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the most likely id."""
    top_k: int | None = None
    """Only the k most likely ids; None means all."""
    top_p: float = 1.0
    """Only the smallest set of ids whose probability reaches top_p."""
    seed: int = 0
    """Row r draws from the stream (seed, r), whatever else is in its batch."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")


def sample(logits: Tensor, sampling: Sampling, streams: Sequence[torch.Generator]) -> list[int]:
    """One id per row of logits [B, V]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    p, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    cumulative = p.cumsum(dim=-1)
    p = p.masked_fill(cumulative - p >= sampling.top_p, 0.0)  # the id that crosses top_p stays
    cumulative = p.cumsum(dim=-1)
    # Inverse of the distribution function at one uniform number per row
    uniform = torch.stack([torch.rand((), generator=generator) for generator in streams]).to(p)
    drawn = (cumulative < (uniform * cumulative[:, -1])[:, None]).sum(dim=-1, keepdim=True)
    return order.gather(1, drawn.clamp(max=order.shape[-1] - 1))[:, 0].tolist()
