"""Log-likelihoods of continuations, in batches of prompts of any lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.execute import Watch
from latentpt.thoughts.measure import hidden_states, prediction
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule

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
    hidden = hidden_states(model, inputs, forward == "exact")
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


@torch.no_grad()
def sample_losses(
    model: LanguageModel,
    batch: Tensor,
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Summed nats and number of targets of every sample of int64 [b, L + 1], float64 [2, b]; see `measure.summed_loss`.

    Samples are what errors are reckoned over: tokens of one text are no independent draws.
    """
    return sample_figures(model, batch, exact, end_token, schedule, watch)[:2]


@torch.no_grad()
def sample_figures(
    model: LanguageModel,
    batch: Tensor,
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """`sample_losses`, and the thoughts that its targets' predictions took, float64 [3, b]."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    ids, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
    found = prediction(model, ids, exact, end_token, schedule, watch)
    nats = [model.decoder.head(*row).double() for row in zip(found.hidden, targets, strict=True)]
    model.train(training)
    counted = targets != IGNORE
    count = counted.sum(1).double()
    thoughts = count * (model.method.slots - 1)
    if found.slot_weights is not None:
        thoughts = ((found.slot_weights[..., 1:] > 0).sum(-1) * counted).sum(1).double()
    return torch.stack([torch.stack(nats), count, thoughts]).cpu()


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches, the longest first, so that a batch that is too large shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]
