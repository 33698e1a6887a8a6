"""Latent thoughts: a slot reads the last hidden state of the slot before it (PonderLM-2, arXiv 2509.23184)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.method import ThoughtMethod, Tokens


class Latent(ThoughtMethod):
    """u(t, s) = h(t, s - 1): the state after the final norm, no projection, nothing detached."""

    def latents(
        self, decoder: Decoder, tokens: Tokens, slots: range, inputs: Tensor | None, states: Tensor | None
    ) -> Tensor:
        """The states themselves, on the row of their position where positions are learned."""
        assert states is not None
        return states if tokens.rows is None else states + tokens.rows
