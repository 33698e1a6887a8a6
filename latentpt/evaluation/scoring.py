"""Log-likelihoods of continuations, in batches of prompts of any lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from latentpt.thoughts.measure import prediction
from latentpt.thoughts.model import LanguageModel

Forward = Literal["training", "exact"]
"""Which forward measures: the one that training uses, or exact decoding, as generation does."""


class Score(NamedTuple):
    """What a model says about a continuation."""

    logprob: float
    """Natural log-probability of its tokens after their context."""
    greedy: bool
    """Whether each of its tokens is the likeliest one."""


@torch.no_grad()
def score(
    model: LanguageModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], forward: Forward = "training"
) -> list[Score]:
    """Scores of (context, continuation) pairs of ids, as one batch; contexts have at least one id.

    Rows are padded on the right: what comes after a token changes nothing about it. A pair of more than max_positions
    ids loses the beginning of its context.
    """
    limit = model.config.max_positions
    rows = [[*context, *continuation][-(limit + 1) :] for context, continuation in pairs]
    width = max(map(len, rows)) - 1
    device = next(model.parameters()).device
    inputs = torch.tensor([row[:-1] + [0] * (width + 1 - len(row)) for row in rows], device=device)
    hidden = prediction(model, inputs, forward == "exact").hidden
    scores = []
    for row, (ids, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
        count = min(len(continuation), len(ids) - 1)
        logits = model.decoder.head(hidden[row, len(ids) - 1 - count : len(ids) - 1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = torch.tensor(ids[len(ids) - count :], device=device)
        logprobs = logits.log_softmax(-1).gather(-1, targets[:, None])
        total = logprobs.sum(dtype=torch.float64)  # thousands of nats in float32 are rounded by a thousandth
        scores.append(Score(total.item(), bool((logits.argmax(-1) == targets).all())))
    return scores


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches, the longest first, so that a batch that is too large shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]
