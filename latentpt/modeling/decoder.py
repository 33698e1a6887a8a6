"""The decoder: one trunk for three families. It knows nothing of thoughts beyond cells that lie in slots.

Shapes: B rows, L positions, S slots per position, R slots that are read, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentpt.modeling.attention import Attention, LayerCache
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.linear import Linear
from latentpt.modeling.loss import linear_cross_entropy
from latentpt.modeling.merge import KeyBlock
from latentpt.modeling.rotary import Rotary, rotary
from latentpt.seeding import stream

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values [B, H_kv, n, D] of n cells."""


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the width."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class MLP(nn.Module):
    """d -> ff -> d with GELU, or SwiGLU(x) = W_down(silu(W_gate x) * W_up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width = config.mlp_size * (2 if self.activation == "swiglu" else 1)
        self.up = Linear(config.hidden_size, width, bias=config.bias)
        self.down = Linear(config.mlp_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        h = self.up(x)
        if self.activation == "swiglu":
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down(h)


class Block(nn.Module):
    """One layer: attention and MLP, side by side (GPT-NeoX) or one after the other."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, backend)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        angles: Rotary | None,
        others: Sequence[KeyBlock] = (),
        read: slice | None = None,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, L, S, d] -> [B, L, R, d] and the keys and values of all S slots."""
        attended, kv = self.attention(self.attention_norm(x), angles, others, read, cache, mask)
        if read is not None:
            x = x[:, :, read]
        if self.parallel:
            return x + attended + self.mlp(self.mlp_norm(x)), kv
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), kv


class Head(Linear):
    """Unembedding W_o [V, d] without bias; gives logits or, never holding them all, the loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [.., V], or with targets the summed cross-entropy in nats."""
        if targets is None:
            return super().forward(hidden)
        return linear_cross_entropy(hidden.flatten(0, -2), self.weight, targets.flatten())


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head. `run` is the one way through the blocks."""

    def __init__(
        self, config: ModelConfig, backend: str = "sdpa", checkpoint_activations: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config, backend) for _ in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = Head(config)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def angles(self, positions: Tensor) -> Rotary | None:
        """Rotary angles of int positions [L] or [B, L]; None for learned positions."""
        if self.config.positions == "learned":
            return None
        return rotary(positions, self.config.rotary_size, self.config.rope_theta)

    def run(
        self,
        u: Tensor,
        angles: Rotary | None,
        others: Sequence[Sequence[KeyBlock]] | None = None,
        read: slice | None = None,
        caches: Sequence[LayerCache] | None = None,
        keep: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Run the blocks once over a set of cells.

        u [B, L, S, d] are the cells' inputs; `others` are per layer the key blocks outside the set that it sees;
        `read` names the slots whose result somebody reads: the last layer computes queries, output and MLP for
        these alone; `mask` (bool [B, 1, L*S, L*S]) keeps documents in the set apart. Returns the residual stream before the final norm, [B, L, R, d], and, if `keep`, the keys and
        values that the set leaves for others.
        """
        kept: KeysValues = []
        x = u
        for layer, block in enumerate(self.blocks):
            wanted = read if layer == len(self.blocks) - 1 else None
            seen = () if others is None else others[layer]
            if caches is not None:
                x, kv = block(x, angles, seen, wanted, caches[layer])
            elif self.checkpoint_activations and torch.is_grad_enabled():
                # Reentrant checkpointing breaks ZeRO-2 and ZeRO-3 when a block runs several times in one forward.
                x, kv = checkpoint(block, x, angles, seen, wanted, None, mask, use_reentrant=False)
            else:
                x, kv = block(x, angles, seen, wanted, None, mask)
            if keep:
                kept.append(kv)
        return x, kept


@torch.no_grad()
def initialize(module: nn.Module, seed: int, std: float, residual_std: float) -> None:
    """Truncated normal, cut at 3 std, for every matrix of the module; norms 1 and 0, biases 0.

    Attention-out and MLP-down, which write to the residual stream, take `residual_std`. A parameter's values depend on
    the seed and its name alone.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        spread = residual_std if name.endswith(("attention.out.weight", "mlp.down.weight")) else std
        values = torch.empty(parameter.shape, dtype=torch.float32)
        nn.init.trunc_normal_(values, std=spread, a=-3 * spread, b=3 * spread, generator=stream(seed, name))
        parameter.copy_(values)
