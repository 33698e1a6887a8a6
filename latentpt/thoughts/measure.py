"""Loss on held-out tokens, by the forward that training uses and by exact sequential decoding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.documents import document_ids
from latentpt.thoughts.execute import Prediction, Watch
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule


class Sums(NamedTuple):
    """What is summed over targets, so that several processes can add theirs."""

    nats: float
    """Cross-entropy."""
    tokens: int
    """Number of targets."""
    reached: tuple[float, ...]
    """Slot by slot the tokens that think it."""
    weights: tuple[float, ...]
    """Slot by slot their W, see `halting`; the same where no token stops."""

    @property
    def thoughts(self) -> float:
        """Average number of thoughts of a token."""
        return sum(self.reached[1:]) / max(self.tokens, 1)


@torch.no_grad()
def validation_loss(
    model: LanguageModel, batches: Iterable[Tensor], exact: bool = False, end_token: int | None = None
) -> float:
    """Mean nats per token over batches of int64 [b, L + 1]; `exact` decodes cell by cell, as generation does.

    An `end_token` keeps the documents that it divides apart, as training with data.mask_documents does.
    """
    sums = summed_loss(model, batches, exact, end_token)
    return sums.nats / max(sums.tokens, 1)


@torch.no_grad()
def summed_loss(
    model: LanguageModel,
    batches: Iterable[Tensor],
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Sums:
    """Nats and thoughts summed over targets. `schedule` replaces the training forward's own, `watch` looks on."""
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    thought = torch.zeros(2, model.method.slots, dtype=torch.float64, device=device)
    count = 0
    training = model.training
    model.eval()
    for batch in batches:
        ids, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
        found = prediction(model, ids, exact, end_token, schedule, watch)
        total += model.decoder.head(found.hidden, targets)
        count += int((batch[:, 1:] != IGNORE).sum())
        if found.slot_weights is not None:
            weights = found.slot_weights[targets != IGNORE].double()
            thought[:, : weights.shape[1]] += torch.stack([(weights > 0).sum(0), weights.sum(0)])
    model.train(training)
    if model.method.halting is None:
        thought += count
    reached, weighed = thought.tolist()
    return Sums(total.item(), count, tuple(reached), tuple(weighed))


@torch.no_grad()
def hidden_states(
    model: LanguageModel,
    ids: Tensor,
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """The states [B, L, d] that predict after ids [B, L], see `summed_loss`."""
    return prediction(model, ids, exact, end_token, schedule, watch).hidden


@torch.no_grad()
def prediction(
    model: LanguageModel,
    ids: Tensor,
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Prediction:
    """What predicts after ids [B, L], see `summed_loss`."""
    documents = None if end_token is None else document_ids(ids, end_token)
    if exact:
        schedule = model.method.exact_schedule()
    # Decoding writes into a cache as generation does; a cache holds one document a row.
    cache = model.cache(*ids.shape) if exact and documents is None else None
    return model.read(model.tokens(ids, documents=documents), schedule, cache, watch)[-1]
