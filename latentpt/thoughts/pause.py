"""Pause tokens: N copies of one unused vocabulary row after every token (Goyal et al. 2023, arXiv 2310.02226)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.state import Before


class Pause(ThoughtMethod):
    """u(t, s) = sqrt(d) W_e[pause]: more slots to compute in, nothing fed back, one pass."""

    feedback = False
    default_scale = 1.0

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        last = model.vocab_size - 1
        self.row = last if config.pause_token is None else config.pause_token
        if not 0 <= self.row <= last:
            raise ValueError(
                f"thoughts.pause_token = {self.row} is no row of the vocabulary; the nearest is {last}"
            )

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The same row everywhere."""
        row = decoder.embedding(tokens.ids.new_full((1, 1, 1), self.row)) * self.embed_scale
        return tokens.placed(row).expand(*tokens.ids.shape, len(slots), -1)
