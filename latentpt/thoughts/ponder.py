"""PonderLM: the expected embedding of the next token is added to the input and the model runs again (arXiv 2505.20674)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.mixing import MixingMethod
from latentpt.thoughts.plan import Visibility
from latentpt.thoughts.state import Before


class Ponder(MixingMethod):
    """E_s = E_0 + c softmax(W_o h_{s-1}) W_e, or with `cumulative` E_s = E_{s-1} + the same; c = sqrt(d)."""

    fixed_visibility = Visibility.SAME_SLOT

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The first or the last input plus the expected embedding."""
        assert before is not None
        start = before.inputs if self.config.cumulative else tokens.embeds
        return start + self.expected_embedding(decoder, before.states)


class PonderHidden(ThoughtMethod):
    """E_s = E_{s-1} + f(E_{s-1}): what the published GPT-NeoX file computes as pondering; unscaled."""

    fixed_visibility = Visibility.SAME_SLOT
    default_scale = None

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The last input plus the state that came of it."""
        assert before is not None
        return before.inputs + before.states
