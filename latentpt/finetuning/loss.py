"""What is minimised and measured on a batch, as functions of the module that DeepSpeed calls."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpt.finetuning.batches import Batch
from latentpt.finetuning.fills import Fill, Kind
from latentpt.finetuning.reasoner import Reasoner, Recipe
from latentpt.finetuning.rollout import latent_hidden
from latentpt.modeling.loss import CHUNK_ROWS, IGNORE
from latentpt.thoughts.schedule import Schedule


def summed_loss(
    reasoner: Reasoner,
    batch: Batch,
    fill: Fill,
    refills: int | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Summed cross-entropy in nats over the learnt tokens of a batch."""
    hidden = latent_hidden(reasoner.language, batch.ids, fill, batch.layout, refills, schedule)
    loss: Tensor = reasoner.language.decoder.head(hidden, batch.targets)
    return loss


def training_loss(
    reasoner: Reasoner,
    batch: Batch,
    recipe: Recipe,
    kind: Kind | None,
    share: float,
    refills: int | None,
    schedule: Schedule | None,
) -> Tensor:
    """The batch's share of the mean over the learnt tokens of the whole step: `share` is what a nat counts."""
    return summed_loss(reasoner, batch, reasoner.fill(recipe, kind), refills, schedule) * share


def confidences(reasoner: Reasoner, batch: Batch, recipe: Recipe) -> Tensor:
    """Probability of every learnt token under the model, [B, T] at the positions that predict them, else 1; no latents."""
    hidden = latent_hidden(reasoner.language, batch.ids, reasoner.fill(recipe, "pause"), batch.layout)
    found = torch.ones_like(batch.targets, dtype=torch.float32)
    rows, columns = (batch.targets != IGNORE).nonzero(as_tuple=True)
    for start in range(0, len(rows), CHUNK_ROWS):
        here = rows[start : start + CHUNK_ROWS], columns[start : start + CHUNK_ROWS]
        logprobs = reasoner.language.decoder.head(hidden[here]).float().log_softmax(-1)
        found[here] = logprobs.gather(-1, batch.targets[here][:, None])[:, 0].exp()
    return found
