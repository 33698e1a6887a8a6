"""What methods share that read the expected embedding of the next token."""

from __future__ import annotations

from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.mixture import Mixture
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod


class MixingMethod(ThoughtMethod):
    """Base of the methods with c softmax(W_o h) W_e in their recurrence, of all rows or the `top_k` likeliest."""

    default_scale = 1.0

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.mixture = Mixture()

    def expected_embedding(self, decoder: Decoder, states: Tensor) -> Tensor:
        """c softmax(W_o h) W_e of states h [.., d]."""
        return self.mixture(states, decoder.head, decoder.embedding, self.config.top_k) * self.embed_scale

    def injection_flops(self, model: ModelConfig, slot: int, carried: bool = True) -> int:
        """Logits, and the mixture of all or of the top k rows."""
        if slot == 0:
            return 0
        mixed = min(self.config.top_k or model.vocab_size, model.vocab_size)
        return 2 * model.hidden_size * (model.vocab_size + mixed)
