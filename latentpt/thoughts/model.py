"""The language model: a decoder and the method by which it thinks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder, KeysValues, initialize
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.documents import document_positions
from latentpt.thoughts.registry import make_method
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.solvers import Residuals, solve


class ModelOutput(NamedTuple):
    """What a forward returns."""

    loss: Tensor | None
    """Mean cross-entropy in nats over the targets, if there were any."""
    logits: Tensor | None
    """[B, L, V], one row per position: that of its last slot; None if not wanted."""


class LanguageModel(nn.Module):
    """p(x_{t+1} | x_{<= t}) = softmax(W_o h(t, N)): every position thinks N latents before its token is predicted."""

    def __init__(
        self,
        model: ModelConfig,
        thoughts: ThoughtsConfig,
        attention: str = "sdpa",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.thoughts = model, thoughts
        self.decoder = Decoder(model, attention, checkpoint_activations)
        self.method = make_method(thoughts, model)

    def initialize(self, seed: int) -> None:
        """Fresh weights, a function of the seed alone (methods.md section 2)."""
        deeper = self.method.slots if self.config.family == "pythia" else 1
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        initialize(self, seed, std, residual_std=std / math.sqrt(2 * self.config.num_layers * deeper))

    def training_schedule(self, seed: int, step: int) -> Schedule:
        """The schedule of one training step, equal on every rank."""
        return self.method.training_schedule(seed, step)

    def think(
        self,
        input_ids: Tensor,
        schedule: Schedule | None = None,
        prefix: KeysValues | None = None,
        keep: bool = False,
        residuals: Residuals | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Hidden states h(t, N) after the final norm, [B, L, d], of ids int64 [B, L] under the schedule.

        `prefix` holds the keys and values of all cells before; `keep` asks for those of these cells as well,
        `residuals` are told how far each sweep moved. `documents` [B, L], the number of each token's document, keeps
        attention inside a document and lets positions restart with it; such a stretch has no prefix.
        """
        start = prefix[0][0].shape[2] // self.method.slots if prefix else 0
        end = start + input_ids.shape[1]
        if self.config.positions == "learned" and end > self.config.max_positions:
            raise ValueError(f"{end} tokens do not fit model.max_positions = {self.config.max_positions}")
        positions = torch.arange(start, end, device=input_ids.device)
        if documents is not None:
            assert prefix is None, "a stretch of several documents has no prefix"
            positions = document_positions(documents)
        tokens = self.method.tokens(self.decoder, input_ids, positions)._replace(documents=documents)
        schedule = schedule or self.method.schedule()
        x, kv = solve(self.decoder, self.method, tokens, schedule, prefix, keep, residuals)
        return self.decoder.norm(x), kv

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        target_count: Tensor | None = None,
        schedule: Schedule | None = None,
        return_logits: bool = True,
        residuals: Residuals | None = None,
        documents: Tensor | None = None,
    ) -> ModelOutput:
        """Predict the next token at every position of ids int64 [B, L].

        `labels` [B, L] are the ids themselves and are shifted inside; `targets` [B, L] are already the next tokens.
        Positions whose target is -100 carry no loss. The loss is the summed nats over `target_count` (None: the number of
        targets, at least 1). `residuals` are told how far each refinement moved the latents;
        `documents` [B, L], the number of each token's document, keeps documents apart.
        """
        hidden, _ = self.think(input_ids, schedule, residuals=residuals, documents=documents)
        if labels is not None:
            targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
        loss = None
        if targets is not None:
            count = (targets != IGNORE).sum().clamp(min=1) if target_count is None else target_count
            loss = self.decoder.head(hidden, targets) / count
        logits = self.decoder.head(hidden) if return_logits else None
        return ModelOutput(loss, logits)
