"""Sequential hidden decoding: N more embedding tables fill the latent slots; nothing is fed back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.state import Before


class SequentialHiddenDecoding(ThoughtMethod):
    """u(t, s) = c T_s[x_t] with a table T_s [V, d] for every latent slot; c = sqrt(2.5 d)."""

    feedback = False

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        shape = (model.vocab_size, model.hidden_size)
        self.tables = nn.ModuleList(nn.Embedding(*shape) for _ in range(config.num_thoughts))

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The token's row in the table of each slot."""
        rows = torch.stack([self.tables[slot - 1](tokens.ids) for slot in slots], dim=2)
        return tokens.placed(rows * self.embed_scale)
