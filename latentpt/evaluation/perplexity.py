"""Loss on held-out tokens, by the forward that training uses and by exact sequential decoding."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latentpt.data.masking import document_ids
from latentpt.generation.decode import Session
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.model import LanguageModel


@torch.no_grad()
def validation_loss(
    model: LanguageModel, batches: Iterable[Tensor], exact: bool = False, end_token: int | None = None
) -> float:
    """Mean nats per token over batches of int64 [b, L + 1]; `exact` decodes cell by cell, as generation does.

    An `end_token` keeps the documents that it ends apart, as training with data.mask_documents does.
    """
    total, count = summed_loss(model, batches, exact, end_token)
    return total / max(count, 1)


@torch.no_grad()
def summed_loss(
    model: LanguageModel, batches: Iterable[Tensor], exact: bool = False, end_token: int | None = None
) -> tuple[float, int]:
    """Summed nats and number of targets, so that several processes can add theirs."""
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    training = model.training
    model.eval()
    for batch in batches:
        ids, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
        documents = None if end_token is None else document_ids(ids, end_token)
        if exact and documents is None:
            hidden = Session(model, *ids.shape).extend(ids)
        else:
            schedule = model.method.exact_schedule() if exact else None
            hidden, _ = model.think(ids, schedule, documents=documents)
        total += model.decoder.head(hidden, targets)
        count += int((batch[:, 1:] != IGNORE).sum())
    model.train(training)
    return total.item(), count
