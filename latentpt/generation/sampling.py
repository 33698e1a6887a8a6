"""From logits to ids: greedy, temperature, top-k, top-p and repetition penalty, with random streams of every row's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentpt.seeding import stream


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
    repetition_penalty: float = 1.0
    """Logits of ids that the row already holds are divided by it if positive, else multiplied; 1 changes nothing."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be greater than 0, got {self.repetition_penalty}")

    def streams(self, rows: int) -> list[torch.Generator]:
        """The random stream of each row."""
        return [stream(self.seed, "row", row) for row in range(rows)]


def choose(logits: Tensor, sampling: Sampling, numbers: Tensor | None) -> Tensor:
    """One id per row of logits [B, V], int64 [B], by numbers in [0, 1), [B], which a greedy choice does without."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    assert numbers is not None
    return pick(distribution(logits, sampling), numbers)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [.., V] from which an id is drawn after logits [.., V]; a single one where that is greedy."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        descending, order = p.sort(dim=-1, descending=True)
        before = descending.cumsum(dim=-1) - descending
        kept = descending.masked_fill(before >= sampling.top_p, 0.0)  # the id that crosses top_p stays
        p = torch.zeros_like(p).scatter_(-1, order, kept)
    return p / p.sum(dim=-1, keepdim=True)


def draw(p: Tensor, streams: Sequence[torch.Generator]) -> list[int]:
    """One id per row of probabilities [B, V]."""
    drawn: list[int] = pick(p, uniform(streams)).tolist()
    return drawn


def uniform(streams: Sequence[torch.Generator]) -> Tensor:
    """The next number of every stream, float64 [B] in [0, 1), on the host."""
    return torch.stack([torch.rand((), generator=generator) for generator in streams]).double()


def pick(p: Tensor, numbers: Tensor) -> Tensor:
    """The distribution function of each row of probabilities [B, V] inverted at a number [B]: ids int64 [B]."""
    cumulative = p.double().cumsum(dim=-1)
    wanted = (numbers.to(cumulative) * cumulative[:, -1])[:, None]
    # The first id whose cumulative probability exceeds the number: never one of probability 0.
    return torch.searchsorted(cumulative, wanted, right=True).clamp(max=p.shape[-1] - 1)[:, 0]


class Penalty:
    """Makes ids that a row already holds less likely (Keskar et al. 2019, arXiv 1909.05858)."""

    def __init__(self, penalty: float, rows: int, vocab_size: int, device: torch.device) -> None:
        self.penalty = penalty
        self.held = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)

    def note(self, ids: Tensor) -> None:
        """Every row now holds more ids, int64 [B, n]."""
        self.held.scatter_(1, ids, True)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, V] -> the same, held ids made less likely."""
        weakened = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(self.held, weakened, logits)
