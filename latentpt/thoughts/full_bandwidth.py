"""Full-bandwidth Transformer: the last hidden state takes the place of the next token's embedding (arXiv 2608.08888)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.linear import Gate, Linear
from latentpt.thoughts.carry import CarryMethod, fill_uniform
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.state import Before

EPSILON = 1e-6


class FullBandwidth(CarryMethod):
    """u(t) = RMS((W_U h(t - 1)) * sigmoid(W_G RMS(e(t)))), h after the final norm, e the embedding: `fusion: gate`.

    `concat` is RMS(W [RMS(h); RMS(e)]), `add` is e + W_U h. Where nothing is carried u = e, so the first of several
    passes is the plain decoder's. In training noise is added to h, and a random share of every document stays plain;
    how long a share is not published, and is uniform here. The loss is that of the first pass plus the mean of the others'.
    """

    draws = True

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        d = model.hidden_size
        self.value = Linear(2 * d if config.fusion == "concat" else d, d, bias=False)
        self.gate = Gate(d, d, bias=False) if config.fusion == "gate" else None

    def initialize(self, seed: int) -> None:
        """Standard deviation 1 / sqrt(inputs), as published; or, for `add`, zero."""
        for name, module in self.named_children():
            assert isinstance(module, Linear)
            zero = self.config.zero_init and self.config.fusion == "add"
            fill_uniform(module, 0.0 if zero else math.sqrt(3 / module.weight.shape[1]), seed, f"fbt.{name}")

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """State and embedding fused, or the embedding alone where there is no state or the prefix is plain."""
        assert before is not None
        e, states, known = tokens.embeds, before.states, before.known
        if isinstance(known, bool):
            return self.fuse(tokens, states) if known else e
        if tokens.chance is not None:
            states = states + self.config.noise * (2 * tokens.chance.uniform(self.width) - 1).unsqueeze(2).to(
                e
            )
            if self.config.plain_prefix:
                fused = tokens.chance.place > tokens.chance.of_document()
                known = known & fused[..., None, None]
        return torch.where(known, self.fuse(tokens, states), e)

    def fuse(self, tokens: Tokens, states: Tensor) -> Tensor:
        """Inputs [B, L, 1, d] of states and tokens."""
        e = tokens.embeds
        if self.config.fusion == "add":
            return e + self.value(states)
        if self.gate is not None:
            mixed = self.value(states) * torch.sigmoid(self.gate(rms(e)))
        else:
            mixed = self.value(torch.cat([rms(states), rms(e)], dim=-1))
        size = e.square().mean(-1, keepdim=True).sqrt() if self.config.match_scale else 1.0
        return tokens.placed(rms(mixed) * size)

    def loss_weights(self, schedule: Schedule) -> list[float]:
        """1 for the first pass, and 1 for the mean of the others."""
        others = len(schedule.sweeps) - 1
        return [1.0, *([1 / others] * others if others else [])]

    def injection_flops(self, model: ModelConfig, slot: int, carried: bool = True) -> int:
        """The fusion's matrices, where anything is carried."""
        return carried * 2 * model.hidden_size**2 * (1 if self.config.fusion == "add" else 2)

    def memory_flops(self, model: ModelConfig) -> int:
        """W_U h; what is concatenated has a gradient anyway."""
        return 0 if self.config.fusion == "concat" else 2 * model.hidden_size**2


def rms(x: Tensor) -> Tensor:
    """x over its root mean square, without parameters."""
    return F.rms_norm(x, x.shape[-1:], eps=EPSILON)
