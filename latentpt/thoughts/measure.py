"""Loss on held-out tokens, by the forward that training uses and by exact sequential decoding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.documents import document_ids
from latentpt.thoughts.execute import Prediction
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.watch import Watch


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


class Samples(NamedTuple):
    """The same of every sample of a batch, float64 on the model's device. Tokens of one text are no independent draws."""

    nats: Tensor
    """[b]."""
    tokens: Tensor
    """[b]."""
    reached: Tensor
    """[b, S]."""
    weights: Tensor
    """[b, S]."""

    @property
    def thoughts(self) -> Tensor:
        """Thoughts that the predictions of all targets took, [b]."""
        return self.reached[:, 1:].sum(1)


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
    slots, device = model.method.slots, next(model.parameters()).device
    totals = [torch.zeros(size, dtype=torch.float64, device=device) for size in ((), (), (slots,), (slots,))]
    for batch in batches:
        found = sample_sums(model, batch, exact, end_token, schedule, watch)
        totals = [total + part.sum(0) for total, part in zip(totals, found, strict=True)]
    nats, tokens, reached, weights = totals
    return Sums(nats.item(), int(tokens), tuple(reached.tolist()), tuple(weights.tolist()))


@torch.no_grad()
def sample_sums(
    model: LanguageModel,
    batch: Tensor,
    exact: bool = False,
    end_token: int | None = None,
    schedule: Schedule | None = None,
    watch: Watch | None = None,
) -> Samples:
    """What `summed_loss` sums of every sample of int64 [b, L + 1]."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    ids, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
    found = prediction(model, ids, exact, end_token, schedule, watch)
    _, nats = model.decoder.head(found.hidden, targets, by_row=True)
    model.train(training)
    counted = (targets != IGNORE)[..., None]
    if found.slot_weights is None:
        weights = counted.double().expand(*targets.shape, model.method.slots)
    else:
        unused = model.method.slots - found.slot_weights.shape[-1]
        weights = F.pad(found.slot_weights.double(), (0, unused)) * counted
    return Samples(
        nats.view(targets.shape).double().sum(1),
        counted.sum((1, 2)).double(),
        (weights > 0).sum(1).double(),
        weights.sum(1),
    )


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
