"""T2MLR: what the middle layers made of a token goes into the middle layers of the next one (arXiv 2607.15178)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.linear import Gate, Linear
from latentpt.thoughts.carry import CarryMethod, fill_uniform
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.state import Before

LARGEST = 5.0
"""A state is scaled by no more than this, and by no less than one over it."""


class MiddleRecurrence(CarryMethod):
    """x + tanh(a) sigmoid(W_r c + b_r) * r + tanh(b) sigmoid(W_x c + b_x) * x enters the span, with r = W_P R(t - 1), c = [x; r].

    R(t) = RMS(y(t) + R(t - 1)), y being the stream that leaves the span and R(-1) = 0; the scale carries no gradient, as in
    the published code. a and b start at 0, so at first the model is the plain decoder. The layers before and after the span
    run once a token whatever the number of sweeps. The published first guess has no injection and no sum; here it is the
    same computation with R = 0, which for a, b = 0 is that.
    """

    default_span = "middle"

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        d = model.hidden_size
        self.project = Linear(d, d, bias=False)
        self.state_gate, self.stream_gate = Gate(2 * d, d), Gate(2 * d, d)
        self.state_rate, self.stream_rate = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def initialize(self, seed: int) -> None:
        """Rates 0; projection as torch's Linear, gates by Xavier's rule with random biases, as published."""
        d = self.width
        for rate in (self.state_rate, self.stream_rate):
            nn.init.zeros_(rate)
        fill_uniform(self.project, 1 / math.sqrt(d), seed, "t2mlr.project")
        for name, gate in (("state_gate", self.state_gate), ("stream_gate", self.stream_gate)):
            fill_uniform(gate, math.sqrt(2 / d), seed, f"t2mlr.{name}")
            with torch.no_grad():
                gate.bias.mul_(0.5)  # to 1 / sqrt(2 d)

    def states(self, decoder: Decoder, x: Tensor) -> Tensor:
        """The stream that leaves the span, no norm."""
        return x

    def update(self, states: Tensor, memory: Tensor | None) -> Tensor:
        """R(t) from what left the span and R(t - 1)."""
        total = states if memory is None else states + memory
        scale = total.detach().float().square().mean(-1, keepdim=True).rsqrt().clamp(1 / LARGEST, LARGEST)
        return super().update(total * scale.to(total.dtype), memory)

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The stream that enters the span, with the gated state."""
        assert before is not None
        x = tokens.embeds
        r = self.project(before.states) if before.known is not False else before.states.to(x.dtype)
        both = torch.cat([x, r], dim=-1)
        mixed = torch.tanh(self.state_rate) * torch.sigmoid(self.state_gate(both)) * r
        return x + mixed + torch.tanh(self.stream_rate) * torch.sigmoid(self.stream_gate(both)) * x

    def injection_flops(self, model: ModelConfig, slot: int, carried: bool = True) -> int:
        """Two gates of 2 d inputs, and the projection where anything is carried."""
        return (8 + 2 * carried) * model.hidden_size**2

    def memory_flops(self, model: ModelConfig) -> int:
        """The projection."""
        return 2 * model.hidden_size**2
