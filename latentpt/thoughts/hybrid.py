"""Latent thoughts with a carry: the last slot's state also goes into the next token's slot 0."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.latent import Latent
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.shifting import Shift
from latentpt.thoughts.state import Before


class Hybrid(Latent):
    """u(t, 0) = e(t) + tanh(g) h(t - 1, N) with a gate g [d] that starts at zero, u(t, s) = h(t, s - 1)."""

    carry = True

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.shift = Shift(config.injection or "gate", model)

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The token and what is carried into it, or the states themselves."""
        if slots[0]:
            return super().inject(decoder, tokens, slots, before)
        assert before is not None
        return self.shift(tokens.embeds, before.states)
