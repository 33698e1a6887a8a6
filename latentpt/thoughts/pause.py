"""Pause tokens: N copies of one row that no text uses after every token (Goyal et al. 2023, arXiv 2310.02226)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.state import Before


class Pause(ThoughtMethod):
    """u(t, s) = sqrt(d) w: more slots to compute in, nothing fed back, one pass. w is a row of its own, beside the
    vocabulary, unless `pause_token` names one of the vocabulary's."""

    feedback = False
    default_scale = 1.0

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        last = model.vocab_size - 1
        if config.pause_token is None:
            self.row = nn.Embedding(1, model.hidden_size)
        elif not 0 <= config.pause_token <= last:
            raise ValueError(
                f"thoughts.pause_token = {config.pause_token} is no row of the vocabulary; the nearest is {last}"
            )

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The same row everywhere."""
        index = self.config.pause_token
        table = self.row if index is None else decoder.embedding
        at = torch.full((1, 1, 1), index or 0, dtype=tokens.ids.dtype, device=tokens.ids.device)
        row = table(at) * self.embed_scale
        return tokens.placed(row).expand(*tokens.ids.shape, len(slots), -1)
