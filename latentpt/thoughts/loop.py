"""Looping: the blocks are applied N + 1 times to every position (Universal Transformer's idea, arXiv 1807.03819)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.plan import Visibility
from latentpt.thoughts.state import Before


class Loop(ThoughtMethod):
    """u(t, s) = x(t, s - 1): the residual stream itself, no norm and no re-injection between loops."""

    fixed_visibility = Visibility.SAME_SLOT

    def states(self, decoder: Decoder, x: Tensor) -> Tensor:
        """The stream before the final norm, which is applied once, after the last loop."""
        return x

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The stream goes on; positions entered it in the first loop."""
        assert before is not None
        return before.states


class MidLoop(Loop):
    """The loop over the middle third of the layers, which a curriculum switches on late (public speed records)."""

    default_span = "middle"
