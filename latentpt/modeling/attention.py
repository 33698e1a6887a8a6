"""Self-attention of a rectangle of cells: L positions x S slots, flattened in the order they are thought.

Flattening (L, S) gives the order (0,0) (0,1) .. (0,N) (1,0) .., so plain causal attention over the L*S cells is the
paper's visibility and needs no mask.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from latentpt_kernels import dispatch, rotate_qk
from latentpt_kernels.decode import Place, decode_attention
from torch import Tensor, nn

from latentpt.config import ConfigError, nearest
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.linear import Linear
from latentpt.modeling.merge import KeyBlock, Relation, attend_blocks
from latentpt.modeling.norms import make_head_norm
from latentpt.modeling.rotary import Rotary, rotate


def _sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _flash_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)


CausalAttention = Callable[[Tensor, Tensor, Tensor], Tensor]
Watch = Callable[[Tensor, Tensor], None]

HIDDEN = -2000.0
"""Log-weight of keys that nobody sees: its exponential is 0, and half precision still holds it."""

BACKENDS: dict[str, CausalAttention] = {"sdpa": _sdpa_causal, "flash": _flash_causal}
"""Causal attention of q [B, H, n, D] and k, v [B, H_kv, n, D]; every other visibility goes through merge.py."""


class Part(NamedTuple):
    """Some of a set's own keys, as queries see them."""

    columns: slice | Place
    """Which of the keys, in flat order; or, where the length lies on the device, the cell that looks and the slots it sees."""
    relation: Relation
    mask: Tensor | None = None
    documents: tuple[Tensor, Tensor] | None = None
    """See `latentpt.modeling.merge.KeyBlock`."""


class Group(NamedTuple):
    """Queries that see the same blocks of keys."""

    slots: slice
    """Which of the slots that are read."""
    own: tuple[Part, ...]
    """Of the set's own keys; where these are written into a cache, of the whole cache."""
    others: tuple[KeyBlock, ...] = ()
    """Keys from elsewhere."""


class View(NamedTuple):
    """What a set of cells sees in one layer."""

    groups: tuple[Group, ...]
    """Together they hold every slot that is read, in order."""
    cache: tuple[Tensor, Tensor] | None = None
    """Keys and values [B, H_kv, n, D] into which the set's own are written before anybody looks."""
    place: slice | Tensor = slice(0)
    """Where in the cache; where the length lies on the device, int32 [n]."""

    rows: Tensor | None = None
    """Which rows of the cache the set has, int64; None: all."""
    log_weights: Tensor | None = None
    """What is added to the attention logits of the set's own keys, [B, L, S]; keys from elsewhere bring theirs."""

    @property
    def cell(self) -> Place | None:
        """The place of a single cell that is written where the device says."""
        if isinstance(self.place, slice) or len(self.place) != 1 or len(self.groups) != 1:
            return None
        (part,) = self.groups[0].own
        return part.columns if isinstance(part.columns, Place) else None


class Injection(nn.Module):
    """What a method puts into one layer: a module, so that its parameters are trained, gathered and saved with the model.

    `memory` [B, L, S, d] holds the state that each cell is fed, zero where there is none; None if nothing is fed to any.
    """

    def residual(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """The stream [B, L, S, d] that enters the layer."""
        return x

    def keys_values(self, x: Tensor, k: Tensor, v: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, S, H_kv, D] of the normalised stream x, before the rotation."""
        return k, v


class QKV(Linear):
    """Queries for the slots somebody reads, keys and values for all, from one fused weight."""

    def __init__(self, config: ModelConfig) -> None:
        rows = (config.num_heads + 2 * config.kv_heads) * config.head_width
        super().__init__(config.hidden_size, rows, bias=config.qkv_biased)
        self.stacked = tuple(
            heads * config.head_width for heads in (config.num_heads, *[config.kv_heads] * 2)
        )
        self.heads, self.kv_heads, self.width = config.num_heads, config.kv_heads, config.head_width

    # A Linear for its matrix, which is stored and gathered as one; what comes out are its parts.
    def forward(self, x: Tensor, read: slice | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        """x [B, L, S, d] -> q [B, L, R, H, D] of the slots in `read`, k and v [B, L, S, H_kv, D].

        If every slot is read, q and k are one tensor [B, L, S, H + H_kv, D].
        """
        if read is None:
            heads = self.multiply(x, self.weight, self.bias).unflatten(-1, (-1, self.width))
            return heads.split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
        rows = self.heads * self.width
        q_bias, kv_bias = (None, None) if self.bias is None else (self.bias[:rows], self.bias[rows:])
        q = self.multiply(x[:, :, read], self.weight[:rows], q_bias)
        kv = self.multiply(x, self.weight[rows:], kv_bias).unflatten(-1, (-1, self.width))
        return q.unflatten(-1, (self.heads, self.width)), *kv.split(self.kv_heads, dim=-2)


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
        self.q_norm = make_head_norm(config, config.num_heads)
        self.k_norm = make_head_norm(config, config.kv_heads)
        self.out = Linear(config.num_heads * config.head_width, config.hidden_size, bias=config.out_biased)

    def forward(
        self,
        x: Tensor,
        angles: Rotary | None,
        view: View,
        read: slice | None = None,
        injection: Injection | None = None,
        memory: Tensor | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from the read slots of x [B, L, S, d]; returns [B, L, R, d] and the set's keys and values [B, H_kv, L*S, D].

        `watch` is shown q [B, L, R, H, D] and k [B, L, S, H_kv, D]. With log-weights heads are D + 1 wide, see `weighed`.
        """
        *turning, v = self.qkv(x, read)
        if injection is not None:
            q, k = self.apart(turning)
            k, v = injection.keys_values(x, k, v, memory)
            turning = [q, k]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.apart(turning)
            turning = [self.q_norm(q), self.k_norm(k)]
        if angles is not None and dispatch.wanted(x):
            turning = list(_rotate_both(*self.apart(turning), angles))
        elif angles is not None:
            turning = [rotate(part, angles) for part in turning]
        q, k = self.apart(turning)
        if view.log_weights is not None:
            q, k, v = weighed(q, k, v, view.log_weights)
        if watch is not None:
            watch(q, k)
        k, v = (part.flatten(1, 2).transpose(1, 2) for part in (k, v))
        seen_k, seen_v, rows = k, v, view.rows
        if view.cache is not None:
            seen_k, seen_v = view.cache
            _write(seen_k, view.place, k, rows)
            _write(seen_v, view.place, v, rows)
        if q.shape[2] == 0:
            return x[:, :, read], (k, v)
        attended = []
        for slots, own, others in view.groups:
            asking = q[:, :, slots]
            place = own[0].columns
            if isinstance(place, Place):
                found = decode_attention(asking[:, 0, 0], seen_k, seen_v, place)
                attended.append(found.flatten(1)[:, None, None])
                continue
            blocks = [
                KeyBlock(_of(rows, seen_k[:, :, c]), _of(rows, seen_v[:, :, c]), r, mask, docs)
                for c, r, mask, docs in own
            ]
            found = self.attend(asking.flatten(1, 2).transpose(1, 2), [*blocks, *others])
            found = found[..., : self.qkv.width].transpose(1, 2)
            attended.append(found.flatten(2).unflatten(1, (-1, asking.shape[2])))
        return self.out(attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)), (k, v)

    def apart(self, turning: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Queries [B, L, R, H, D] and keys [B, L, S, H_kv, D], which are one tensor as long as nothing tells them apart."""
        q, k = turning if len(turning) == 2 else turning[0].split([self.qkv.heads, self.qkv.kv_heads], dim=-2)
        return q, k

    def attend(self, q: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
        """q [B, H, n, D] over the blocks; one causal sequence goes to the backend."""
        k, v, relation, mask, documents = blocks[0]
        if len(blocks) == 1 and relation is Relation.CAUSAL and mask is None and documents is None:
            return self.causal(q, k, v)
        return attend_blocks(q, blocks)


def weighed(q: Tensor, k: Tensor, v: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads one wider, with which plain attention adds log_weights [B, L, S] to the logits of their keys.

    q [B, L, R, H, D], k and v [B, L, S, H_kv, D] -> the same with D + 1: q . k / sqrt(D) + log w is one product when the
    last number of a key is log w and that of a query undoes the scale, so that nothing but the width of heads changes
    for any way to attend (PonderLM-3's extra column, arXiv 2603.02023).
    """
    width = q.shape[-1]
    root = math.sqrt(width + 1)
    q = F.pad(q * (root / math.sqrt(width)), (0, 1), value=root)
    column = log_weights.to(k.dtype)[..., None, None].expand(*k.shape[:-1], 1)
    return q, torch.cat([k, column], dim=-1), F.pad(v, (0, 1))


def _of(rows: Tensor | None, x: Tensor) -> Tensor:
    return x if rows is None else x[rows]


def _rotate_both(q: Tensor, k: Tensor, angles: Rotary) -> tuple[Tensor, Tensor]:
    """q [B, L, R, H, D] and k [B, L, S, H_kv, D] turned in one launch."""
    flat = (x.flatten(1, 2).transpose(1, 2) for x in (q, k))
    turned = rotate_qk(*flat, *(part.flatten(-3, -2) for part in angles))
    q, k = (new.transpose(1, 2).unflatten(1, old.shape[1:3]) for new, old in zip(turned, (q, k), strict=True))
    return q, k


def _write(cache: Tensor, place: slice | Tensor, new: Tensor, rows: Tensor | None) -> None:
    """Put the new cells [B, H_kv, n, D] into the cache [C_B, H_kv, C, D], in some rows or all."""
    if isinstance(place, slice):
        cache[slice(None) if rows is None else rows, :, place] = new
    else:
        cache.index_copy_(2, place.long(), new.to(cache.dtype))
