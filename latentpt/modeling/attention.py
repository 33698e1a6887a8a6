"""Self-attention of a rectangle of cells: L positions x S slots, flattened in the order they are thought.

Flattening (L, S) gives the order (0,0) (0,1) .. (0,N) (1,0) .., so plain causal attention over the L*S cells is the
paper's visibility and needs no mask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentpt.config import ConfigError, nearest
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.linear import Linear, linear
from latentpt.modeling.merge import KeyBlock, Relation, attend_blocks
from latentpt.modeling.rotary import Rotary, rotate


def _sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _flash_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)


CausalAttention = Callable[[Tensor, Tensor, Tensor], Tensor]

BACKENDS: dict[str, CausalAttention] = {"sdpa": _sdpa_causal, "flash": _flash_causal}
"""Causal attention of q [B, H, n, D] and k, v [B, H_kv, n, D]; every other visibility goes through merge.py."""


class LayerCache(Protocol):
    """One layer's keys and values of the cells decoded so far."""

    def append(self, k: Tensor, v: Tensor) -> list[KeyBlock]:
        """Store the current cells' keys and values [B, H_kv, n, D]; return all that these cells see, own included."""
        ...


class QKV(Linear):
    """Queries for the slots somebody reads, keys and values for all, from one fused weight."""

    def __init__(self, config: ModelConfig) -> None:
        rows = (config.num_heads + 2 * config.kv_heads) * config.head_width
        super().__init__(config.hidden_size, rows, bias=config.bias)
        self.heads, self.kv_heads, self.width = config.num_heads, config.kv_heads, config.head_width

    # A Linear for its matrix, which is stored and gathered as one; what comes out are its three parts.
    def forward(self, x: Tensor, read: slice | None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """x [B, L, S, d] -> q [B, L, R, H, D], k and v [B, L, S, H_kv, D], R the number of slots in `read`."""
        query_rows = self.heads * self.width
        if read is None:
            q, kv = linear(x, self.weight, self.bias).split(
                [query_rows, 2 * self.kv_heads * self.width], dim=-1
            )
        else:
            q_bias, kv_bias = (
                (None, None) if self.bias is None else (self.bias[:query_rows], self.bias[query_rows:])
            )
            q = linear(x[:, :, read], self.weight[:query_rows], q_bias)
            kv = linear(x, self.weight[query_rows:], kv_bias)
        k, v = kv.unflatten(-1, (2 * self.kv_heads, self.width)).split(self.kv_heads, dim=-2)
        return q.unflatten(-1, (self.heads, self.width)), k, v


class Attention(nn.Module):
    """Multi-head attention with grouped keys, rotary positions and a choice of what the cells see."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise ConfigError(
                f"training.attention = {backend} is unknown; the nearest is {nearest(backend, BACKENDS)}"
            )
        if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
            raise ConfigError(
                "training.attention = flash needs the package flash-attn; without it, take sdpa"
            )
        self.causal = BACKENDS[backend]
        self.qkv = QKV(config)
        self.out = Linear(config.num_heads * config.head_width, config.hidden_size, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        angles: Rotary | None,
        others: Sequence[KeyBlock] = (),
        read: slice | None = None,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from the read slots of x [B, L, S, d].

        Cells see their own set causally, where `mask` (bool [B, 1, L*S, L*S]) allows it, and the `others`; or, when a
        cache is given, what the cache answers. Returns [B, L, R, d] and this set's keys and values, each [B, H_kv, L*S, D].
        """
        slots = x.shape[2]
        q, k, v = self.qkv(x, read)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        k, v = (part.flatten(1, 2).transpose(1, 2) for part in (k, v))
        if q.shape[2] == 0:
            return x[:, :, read], (k, v)
        if cache is not None:
            attended = attend_blocks_cheaply(q.flatten(1, 2).transpose(1, 2), cache.append(k, v))
        elif read is not None:
            return self._attend_columns(q, k, v, slots, others, read, mask), (k, v)
        elif others or mask is not None:
            own = KeyBlock(k, v, Relation.CAUSAL, mask)
            attended = attend_blocks(q.flatten(1, 2).transpose(1, 2), [own, *others])
        else:
            attended = self.causal(q.flatten(1, 2).transpose(1, 2), k, v)
        return self.out(attended.transpose(1, 2).flatten(2).unflatten(1, (-1, q.shape[2]))), (k, v)

    def _attend_columns(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slots: int,
        others: Sequence[KeyBlock],
        read: slice,
        mask: Tensor | None,
    ) -> Tensor:
        """Only some slots are read: each is a column of L queries that sees every column of keys."""
        attended = []
        for index, slot in enumerate(range(*read.indices(slots))):
            columns = [
                KeyBlock(
                    k[:, :, j::slots],
                    v[:, :, j::slots],
                    Relation.CAUSAL if j <= slot else Relation.STRICT,
                    None if mask is None else mask[:, :, slot::slots, j::slots],
                )
                for j in range(slots)
            ]
            attended.append(
                attend_blocks(q[:, :, index].transpose(1, 2), [*columns, *others]).transpose(1, 2)
            )
        return self.out(torch.stack(attended, dim=2).flatten(3))


def attend_blocks_cheaply(q: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """attend_blocks, with the one-block case that decoding meets at every step as a single plain call."""
    if len(blocks) == 1 and blocks[0].relation is Relation.ALL:
        k, v, _, mask = blocks[0]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return attend_blocks(q, blocks)
