"""What methods share that add the stream of the position before to what their slots are made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.state import Before


class Shift(nn.Module):
    """x + m, x + norm(m), or x + tanh(g) m with a gate g [d] that starts at zero, where nothing is added."""

    def __init__(self, kind: str, model: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(model.hidden_size, eps=model.norm_eps) if kind == "norm" else None
        self.gate = nn.Parameter(torch.zeros(model.hidden_size)) if kind == "gate" else None

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, L, 1, d] and what is added to it, [B, L, n, d] -> [B, L, n, d]."""
        if self.norm is not None:
            memory = self.norm(memory)
        return x + (memory if self.gate is None else self.gate.tanh() * memory)


class ShiftingMethod(ThoughtMethod):
    """Base of the methods whose slots read X + shift(H): X enters a span of layers, H is a raw stream, one token late."""

    default_span = "middle"

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.shift = Shift(config.injection or "add", model)

    def states(self, decoder: Decoder, x: Tensor) -> Tensor:
        """The stream itself."""
        return x

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """X + shift(H); a slot that nothing is fed reads X."""
        if before is None:
            return tokens.embeds.expand(-1, -1, len(slots), -1)
        return self.shift(tokens.embeds, before.states)
