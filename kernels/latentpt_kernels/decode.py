"""Decoding one cell a row over a static slot cache: attention, and the linear layers with what surrounds them.

A layer is six launches: norm + QKV + rotary + cache write, attention over the cells seen and the joining of its parts,
out + residual, norm + up + activation, down + residual. Nothing here asks the device a question: where the cell lies
is an int32 tensor `cells`, so that a captured graph serves every position (`graph.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt_kernels import dispatch
from latentpt_kernels.add_norm import add_norm
from latentpt_kernels.rotate_qk import rotate_qk

ACTIVATIONS = ("gelu", "gelu_tanh", "swiglu")


class Norm(NamedTuple):
    """A norm's weight and bias [d], eps and kind, `rms` or `layer`."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    kind: str


class Layer(NamedTuple):
    """The weights of one block as decoding reads them; matrices [out, in], bf16 perhaps beside float32 rows."""

    attention_norm: Norm
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Norm
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: str
    """One of ACTIVATIONS."""
    parallel: bool
    """Whether the MLP reads what attention reads (GPT-NeoX) rather than what it leaves."""


class Place(NamedTuple):
    """Where the new cells lie and what they see."""

    cells: Tensor
    """Flat cell index t S + s of every row, int32 [B], or [1] for all."""
    slots: int
    """Slots per position S."""
    seen: tuple[int, int]
    """Slots first <= s < last that the cell sees: (0, S) everything earlier, (0, s + 1) stage-causal, (s, s + 1) its own."""


def decode_layer(
    x: Tensor, layer: Layer, k: Tensor, v: Tensor, place: Place, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """One block for one new cell a row: x [B, d] -> [B, d]; its keys and values are written to k and v [B, H_kv, C, D].

    cos and sin [1 or B, r/2] are the angles of the rows' positions, None where positions are learned.
    """
    q = decode_qkv(x, layer.attention_norm, layer.qkv, layer.qkv_bias, k, v, place, cos, sin)
    attended = decode_attention(q, k, v, place).flatten(1)
    after = decode_linear(attended, layer.out, layer.out_bias, residual=x)
    read = x if layer.parallel else after
    h = decode_linear(read, layer.up, layer.up_bias, layer.mlp_norm, activation=layer.activation)
    return decode_linear(h, layer.down, layer.down_bias, residual=after)


def decode_attention(q: Tensor, k: Tensor, v: Tensor, place: Place, scale: float | None = None) -> Tensor:
    """q [B, H, D] of one cell a row over the cells of the cache k, v [B, H_kv, C, D] that it sees, itself included."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def by_triton() -> Tensor:
        from latentpt_kernels.on_triton import decode as ours

        arguments = dispatch.widen(q, k, v)
        return ours.attention(*arguments, place.cells, place.slots, place.seen, scale).to(q.dtype)

    def by_torch() -> Tensor:
        cell = torch.arange(k.shape[2], device=q.device)
        slot = cell % place.slots
        mask = (cell <= place.cells[:, None]) & (slot >= place.seen[0]) & (slot < place.seen[1])
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q.unsqueeze(2),
            k.to(q.dtype),
            v.to(q.dtype),
            mask[:, None, None, :].expand(q.shape[0], -1, -1, -1),
            scale=scale,
            enable_gqa=grouped,
        ).squeeze(2)

    key = (*q.shape, k.shape[1], dispatch.size_class(k.shape[2]), place.slots)
    return dispatch.choose("decode_attention", q, {"triton": by_triton, "torch": by_torch}, key)


def decode_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """residual + activation(norm(x) W^T + bias) of x [B, I] in its dtype; W [O, I] may be narrower, sums are float32.

    swiglu takes W [2 O, I], the gate's rows first.
    """

    def by_triton() -> Tensor:
        from latentpt_kernels.on_triton import decode as ours

        rows = (t if t is None else t.contiguous() for t in (x, residual))  # an input may be one row for all
        wide_x, wide_residual, wide_weight, wide_bias = dispatch.widen(*rows, weight, bias)
        product = ours.linear(wide_x, _wide(norm), wide_weight, wide_bias, wide_residual, activation)
        return product.to(x.dtype)

    def by_torch() -> Tensor:
        y = x if norm is None else add_norm(x, None, *norm)[0]
        y = F.linear(y, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if activation == "swiglu":
            gate, value = y.chunk(2, dim=-1)
            y = F.silu(gate) * value
        elif activation is not None:
            y = F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
        return y if residual is None else residual + y

    key = (x.shape[0], *weight.shape, norm is not None, residual is not None, activation)
    return dispatch.choose("decode_linear", x, {"triton": by_triton, "torch": by_torch}, key)


def decode_qkv(
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    k: Tensor,
    v: Tensor,
    place: Place,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """Queries [B, H, D] of norm(x), x [B, d], turned to their position; keys and values are written to their cells.

    weight [(H + 2 H_kv) D, d], the rows of queries, then keys, then values; cos and sin [1 or B, r/2].
    """
    interpreted_narrow = dispatch.interpreted() and torch.bfloat16 in (x.dtype, weight.dtype, k.dtype)

    def by_triton() -> Tensor:
        from latentpt_kernels.on_triton import decode as ours

        return ours.qkv(x.contiguous(), tuple(norm), weight, bias, cos, sin, place.cells, k, v)

    def by_torch() -> Tensor:
        kv_heads, size = k.shape[1], k.shape[3]
        y = decode_linear(x, weight, bias, norm).unflatten(-1, (-1, size)).unsqueeze(2)  # [B, heads, 1, D]
        q, new_k, new_v = y.split([y.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        cells = place.cells.expand(x.shape[0]).long()
        if cos is not None and sin is not None:
            turns = (part if len(part) == 1 else part.unsqueeze(1) for part in (cos, sin))
            q, new_k = rotate_qk(q, new_k, *turns)
        at = cells[:, None, None, None].expand_as(new_k)
        k.scatter_(2, at, new_k.to(k.dtype)), v.scatter_(2, at, new_v.to(v.dtype))
        return q.squeeze(2)

    candidates = {"torch": by_torch} if interpreted_narrow else {"triton": by_triton, "torch": by_torch}
    key = (x.shape[0], *weight.shape, k.shape[1], None if cos is None else cos.shape[-1])
    return dispatch.choose("decode_qkv", x, candidates, key)


def _wide(norm: Norm | None) -> tuple | None:
    return None if norm is None else (*dispatch.widen(norm.weight, norm.bias), norm.eps, norm.kind)
