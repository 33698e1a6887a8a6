"""Loss on held-out tokens, by the forward that training uses and by exact sequential decoding."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.documents import document_ids
from latentpt.thoughts.execute import Watch
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule


@torch.no_grad()
def validation_loss(
    model: LanguageModel, batches: Iterable[Tensor], exact: bool = False, end_token: int | None = None
) -> float:
    """Mean nats per token over batches of int64 [b, L + 1]; `exact` decodes cell by cell, as generation does.

    An `end_token` keeps the documents that it divides apart, as training with data.mask_documents does.
    """
    total, count = summed_loss(model, batches, exact, end_token)
    return total / max(count, 1)


@torch.no_grad()
def summed_loss(
    model: LanguageModel,
    batches: Iterable[Tensor],
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> tuple[float, int]:
    """Summed nats and number of targets, so that several processes can add theirs.

    `schedule` replaces the training forward's own, `watch` looks on.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    training = model.training
    model.eval()
    for batch in batches:
        ids, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
        hidden = hidden_states(model, ids, exact, end_token, schedule, watch)
        total += model.decoder.head(hidden, targets)
        count += int((batch[:, 1:] != IGNORE).sum())
    model.train(training)
    return total.item(), count


@torch.no_grad()
def hidden_states(
    model: LanguageModel,
    ids: Tensor,
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """h(t, N) after the final norm, [B, L, d], of ids [B, L], see `summed_loss`."""
    documents = None if end_token is None else document_ids(ids, end_token)
    if exact:
        schedule = model.method.exact_schedule()
    # Decoding writes into a cache as generation does; a cache holds one document a row.
    cache = model.cache(*ids.shape) if exact and documents is None else None
    return model.think(ids, schedule, cache, watch, documents)
