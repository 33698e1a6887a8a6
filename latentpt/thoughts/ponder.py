"""PonderLM: the expected embedding of the next token is added to the input and the model runs again (arXiv 2505.20674)."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.mixture import Mixture
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod, Tokens, Visibility


def mixture_flops(config: ThoughtsConfig, model: ModelConfig) -> int:
    """Forward FLOPs of one softmax mixture: logits, and the mixture of all or of the top k rows."""
    mixed = min(config.top_k or model.vocab_size, model.vocab_size)
    return 2 * model.hidden_size * (model.vocab_size + mixed)


class Ponder(ThoughtMethod):
    """E_s = E_0 + c softmax(W_o h_{s-1}) W_e, or with `cumulative` E_s = E_{s-1} + the same; c = sqrt(d)."""

    fixed_visibility = Visibility.SAME_SLOT
    default_scale = 1.0

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.mixture = Mixture()

    def latents(
        self, decoder: Decoder, tokens: Tokens, slots: range, inputs: Tensor | None, states: Tensor | None
    ) -> Tensor:
        """The first or the last input plus the expected embedding."""
        assert states is not None and inputs is not None
        expected = self.mixture(states, decoder.head, decoder.embedding, self.config.top_k) * self.embed_scale
        return (inputs if self.config.cumulative else tokens.embeds) + expected

    def latent_flops(self, model: ModelConfig) -> int:
        """The mixture."""
        return mixture_flops(self.config, model)


class PonderHidden(ThoughtMethod):
    """E_s = E_{s-1} + f(E_{s-1}): what the published GPT-NeoX file computes as pondering; unscaled."""

    fixed_visibility = Visibility.SAME_SLOT
    default_scale = None

    def latents(
        self, decoder: Decoder, tokens: Tokens, slots: range, inputs: Tensor | None, states: Tensor | None
    ) -> Tensor:
        """The last input plus the state that came of it."""
        assert states is not None and inputs is not None
        return inputs + states
