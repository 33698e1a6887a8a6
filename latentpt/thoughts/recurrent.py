"""Latent Recurrent Transformer: every layer reads the last hidden state of the token before (arXiv 2605.26797)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentpt.modeling.attention import Injection
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.modeling.linear import Gate, Linear
from latentpt.thoughts.carry import CarryMethod, fill_uniform
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.state import Before

GATED = 32
"""Channels of the stream that the gates read."""
RATE = 0.1
"""What the memory is multiplied by at first, as published: embeddings and memory are of one size."""


class LatentMemory(Injection):
    """One layer's: x + gamma m into the stream, g k + g' A m and g v + g' B m for keys and values.

    The gates g, g' = 2 sigmoid(W_g y) are one number a token and head, y being the first channels of the normalised
    stream. Where nothing is carried m is zero, and the products with it are left out.
    """

    def __init__(self, model: ModelConfig, project: Linear) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((1,), RATE))
        self.project = project
        self.channels = min(GATED, model.hidden_size)
        self.gate = Gate(self.channels, 2 * model.kv_heads, bias=False)

    def residual(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """The memory added at the layer's own rate."""
        return x if memory is None else x + self.rate * memory

    def keys_values(self, x: Tensor, k: Tensor, v: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gated local keys and values plus gated projections of the memory."""
        gates = 2 * torch.sigmoid(self.gate(x[..., : self.channels]))
        local, fed = gates.unsqueeze(-1).chunk(2, dim=-2)
        if memory is None:
            return local * k, local * v
        more_k, more_v = self.project(memory).unflatten(-1, (-1, k.shape[-1])).chunk(2, dim=-2)
        return local * k + fed * more_k, local * v + fed * more_v


class LatentRecurrent(CarryMethod):
    """m(t) = h(t - 1) after the final norm, into every layer.

    solver: strided is the paper's interleaved training, a full pass without memory and then every stride-th position in
    turn; solver: jacobi is its multi-refine, K passes over everything. The loss is the mean over all sets.
    """

    injections: nn.ModuleList

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)

        def project() -> Linear:
            return Linear(model.hidden_size, 2 * model.kv_heads * model.head_width, bias=False)

        shared = project() if config.shared_projections else None
        self.injections = nn.ModuleList(
            LatentMemory(model, shared or project()) for _ in range(model.num_layers)
        )

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Gates open and rates RATE, projections like the keys' and values' of the published code; or all that goes in zero."""
        bound = 0.0 if self.config.zero_init else math.sqrt(3 / self.width)
        for layer, injection in enumerate(self.injections):
            assert isinstance(injection, LatentMemory)
            injection.rate.fill_(0.0 if self.config.zero_init else RATE)
            injection.gate.weight.zero_()
            if layer == 0 or not self.config.shared_projections:
                fill_uniform(injection.project, bound, seed, f"lrt.{layer}")

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """The token's embedding; the memory goes into the layers."""
        return tokens.embeds

    def loss_weights(self, schedule: Schedule) -> list[float]:
        """The mean over sets, of which a sweep has as many as its stride."""
        sets = [sweep.stride for sweep in schedule.sweeps]
        return [count / sum(sets) for count in sets]

    def injection_flops(self, model: ModelConfig, slot: int, carried: bool = True) -> int:
        """Gates, and the projections where anything is carried."""
        gates = 2 * min(GATED, model.hidden_size) * 2 * model.kv_heads
        return model.num_layers * gates + self.memory_flops(model) * carried

    def memory_flops(self, model: ModelConfig) -> int:
        """The projections."""
        return model.num_layers * 2 * model.hidden_size * 2 * model.kv_heads * model.head_width
