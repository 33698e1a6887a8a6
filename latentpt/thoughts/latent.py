"""Latent thoughts: a slot reads the last hidden state of the slot before it (PonderLM-2, arXiv 2509.23184)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.mixing import MixingMethod
from latentpt.thoughts.state import Before


class Latent(ThoughtMethod):
    """u(t, s) = h(t, s - 1): the state after the final norm, no projection, nothing detached."""

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The states themselves."""
        assert before is not None
        return tokens.placed(before.states)


class LatentMixture(MixingMethod):
    """u(t, s) = c softmax(W_o h(t, s - 1)) W_e: the expected embedding instead of the state; c = sqrt(d)."""

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The mixtures."""
        assert before is not None
        return tokens.placed(self.expected_embedding(decoder, before.states))
