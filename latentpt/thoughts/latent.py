"""Latent thoughts: a slot reads the last hidden state of the slot before it (PonderLM-2, arXiv 2509.23184)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.mixture import Mixture
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.ponder import mixture_flops


class Latent(ThoughtMethod):
    """u(t, s) = h(t, s - 1): the state after the final norm, no projection, nothing detached."""

    def latents(
        self, decoder: Decoder, tokens: Tokens, slots: range, inputs: Tensor | None, states: Tensor | None
    ) -> Tensor:
        """The states themselves, on the row of their position where positions are learned."""
        assert states is not None
        return states if tokens.rows is None else states + tokens.rows


class LatentMixture(Latent):
    """u(t, s) = c softmax(W_o h(t, s - 1)) W_e: the expected embedding instead of the state; c = sqrt(d)."""

    default_scale = 1.0

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.mixture = Mixture()

    def latents(
        self, decoder: Decoder, tokens: Tokens, slots: range, inputs: Tensor | None, states: Tensor | None
    ) -> Tensor:
        """The mixtures, on the row of their position where positions are learned."""
        assert states is not None
        expected = self.mixture(states, decoder.head, decoder.embedding, self.config.top_k) * self.embed_scale
        return super().latents(decoder, tokens, slots, inputs, expected)

    def latent_flops(self, model: ModelConfig) -> int:
        """The mixture."""
        return mixture_flops(self.config, model)
