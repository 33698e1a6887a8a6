"""How many thoughts a token needs: every cell has a weight W(t, s), the share of its token that comes as far as slot s.

    W(t, 0) = 1 >= W(t, 1) >= ..        a router's, made from states as they are thought
    W(t, s) < threshold                 becomes 0: the token stops, nobody sees its later slots, decoding never runs them
    p(t, s) = W(t, s) - W(t, s + 1)     what leaves at a slot; all that is left leaves at the last slot there is
    h(t)    = sum_s p(t, s) h(t, s)     what predicts: one state, one head

A threshold of 0 stops nobody, and any threshold may be set on a trained model: it trades cost for loss. Weights are kept
as logarithms, a record that a cell hands to the next slot beside its state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentpt.config import ConfigError
from latentpt.modeling.attention import HIDDEN
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.linear import Gate
from latentpt.modeling.loss import CHUNK_ROWS, IGNORE
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.state import Before


class Halting(nn.Module, ABC):
    """Says how far each token goes; a subclass makes the records."""

    weighs = False
    """Whether log W is added to the attention logits of a cell's key, and not only -inf where the token has stopped."""
    price, power = 0.0, 0.0
    """What thoughts cost, see `penalty`."""
    size = 1
    """Numbers in a record [B, L, n, size], float32 or wider; the first is log W of the cell itself, 0 in slot 0."""

    def __init__(self, threshold: float = 0.0) -> None:
        """Raises ConfigError unless the threshold lies in 0..1."""
        super().__init__()
        self.threshold = threshold

    @property
    def threshold(self) -> float:
        """Tokens stop where W falls below this; 0: nowhere."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ConfigError(
                f"thoughts.threshold = {value} is no share; the nearest that is one is {min(max(value, 0), 1)}"
            )
        self._threshold = value

    @property
    def stops(self) -> bool:
        """Whether any token may stop early."""
        return self.threshold > 0

    @abstractmethod
    def records(self, decoder: Decoder, slots: range, before: Before) -> Tensor:
        """Records [B, L, n, size] of latent slots, from the states [B, L, n, d] and records that they are fed."""

    @abstractmethod
    def flops(self, model: ModelConfig, slot: int) -> int:
        """Forward FLOPs of one cell's record."""

    def forward(self, decoder: Decoder, slots: range, before: Before) -> Tensor:
        """The records, HIDDEN where the token has stopped."""
        found = self.records(decoder, slots, before)
        return found.masked_fill(found < math.log(self.threshold), HIDDEN) if self.stops else found

    def key_weights(self, log_weights: Tensor) -> Tensor:
        """What is added to the attention logits of keys, from the log W [..] of their cells."""
        return log_weights if self.weighs else log_weights.where(log_weights <= HIDDEN, 0.0)

    def shares(self, weights: Tensor) -> Tensor:
        """p [.., n] of the slots in use, which sum to 1, from W [.., n]."""
        return weights - F.pad(weights[..., 1:], (0, 1))

    def penalty(self, weights: Tensor, nats: Tensor, targets: Tensor) -> Tensor:
        """price * sum over tokens of q^power * (W(t, 1) + .. + W(t, N)), to be added to the summed nats.

        weights [B, L, n]; nats [B L] and targets [B, L] of the tokens' predictions give q = exp(-nats), the probability
        of the right token, which carries no gradient: a token that is known pays the full price of its thoughts, one that is
        not may think for free. Power 0 asks the same price of all.
        """
        paid = (-self.power * nats.view(targets.shape)).exp() * (targets != IGNORE)
        return self.price * (paid * weights[..., 1:].sum(-1)).sum()


class Routed(Halting):
    """Halting by a router that is trained with the model, at the price that the configuration names."""

    def __init__(self, config: ThoughtsConfig, correctness: float) -> None:
        """`correctness` is the method's own power."""
        super().__init__(config.threshold)
        self.price = config.thought_price
        self.power = correctness if config.correctness is None else config.correctness


class Router(Gate):
    """A gate that computes in float32 whatever is around it: its logits are small differences that add up."""

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., outputs]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide))


class Confidence(Halting):
    """No router: a token stops after slot 0 if that is sure already, 1 - max softmax(W_o h(t, 0)) < threshold.

    For models that were not trained to stop; the last slot that was thought predicts alone. `threshold` is the doubt that
    is worth thinking about.
    """

    def records(self, decoder: Decoder, slots: range, before: Before) -> Tensor:
        """0 where the token goes on."""
        assert before.records is not None
        if slots[0] != 1 or not self.stops:
            return before.records
        states = before.states[:, :, 0].flatten(0, 1)
        doubt = torch.cat([self.doubt(decoder, rows) for rows in states.split(CHUNK_ROWS)])
        first = doubt.view(before.records[:, :, :1].shape).log().clamp(max=0.0)
        return torch.cat([first, before.records[:, :, 1:]], dim=2)

    def doubt(self, decoder: Decoder, states: Tensor) -> Tensor:
        """1 - the probability of the likeliest token, [n] of states [n, d]."""
        logits = decoder.head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return 1 - logits.softmax(-1).amax(-1)

    def shares(self, weights: Tensor) -> Tensor:
        """1 in the last slot that was thought."""
        return super().shares((weights > 0).to(weights.dtype))

    def flops(self, model: ModelConfig, slot: int) -> int:
        """One row of logits."""
        return 2 * model.hidden_size * model.vocab_size if slot == 1 and self.stops else 0
