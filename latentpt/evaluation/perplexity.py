"""Loss on held-out tokens, by the forward that training uses and by exact sequential decoding."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latentpt.generation.decode import Session
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.model import LanguageModel


@torch.no_grad()
def validation_loss(model: LanguageModel, batches: Iterable[Tensor], exact: bool = False) -> float:
    """Mean nats per token over batches of int64 [b, L + 1]; `exact` decodes cell by cell, as generation does."""
    total, count = summed_loss(model, batches, exact)
    return total / max(count, 1)


@torch.no_grad()
def summed_loss(model: LanguageModel, batches: Iterable[Tensor], exact: bool = False) -> tuple[float, int]:
    """Summed nats and number of targets, so that several processes can add theirs."""
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    training = model.training
    model.eval()
    for batch in batches:
        ids, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
        if exact:
            hidden = Session(model, *ids.shape).extend(ids)
        else:
            hidden, _ = model.think(ids)
        total += model.decoder.head(hidden, targets)
        count += int((batch[:, 1:] != IGNORE).sum())
    model.train(training)
    return total.item(), count
