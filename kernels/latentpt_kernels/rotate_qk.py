"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of queries and keys together, half-split layout."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from latentpt_kernels import dispatch


def rotate_qk(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """Turn the first r values of every head of q [B, H, n, D] and k [B, H_kv, m, D].

    cos and sin are [L, r/2] or [B, L, r/2]; n and m are multiples of L, cell i being at position i // (n / L), as cells
    lie when L positions of n / L slots are flattened. Returns the turned q and k; `inplace` writes them where they were,
    for decoding: a tensor that wants a gradient refuses it with a ValueError, as do lengths that do not fit.
    """
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 4 or x.shape[2] % max(1, cos.shape[-2]) or 2 * cos.shape[-1] > x.shape[3]:
            raise ValueError(
                f"{name} {tuple(x.shape)} does not fit angles {tuple(cos.shape)}: [B, heads, a multiple of L, D] is needed"
            )
    if inplace and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise ValueError("rotate_qk(inplace=True) is for decoding: q and k want a gradient")
    if torch.compiler.is_compiling() and dispatch.mode() != "triton":  # inductor fuses the formula itself
        return _formula(q, k, cos, sin, False, inplace)
    dtypes = q.dtype, k.dtype
    if dispatch.triton_runs(q) and not inplace:
        q, k = dispatch.widen(q, k)
    turn = _Rotation.apply if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad) else _rotate
    turned = turn(q, k, cos, sin, False, inplace)
    return turned[0].to(dtypes[0]), turned[1].to(dtypes[1])


def _rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    if not dispatch.triton_runs(q) or inplace:
        return _in_best_way(q, k, cos, sin, back, inplace)
    return torch.ops.latentpt.rotate_qk(q, k, cos, sin, back)


def _in_best_way(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    def by_triton() -> tuple[Tensor, Tensor]:
        from latentpt_kernels.on_triton.rotate_qk import rotate

        return rotate(q, k, cos.contiguous(), sin.contiguous(), back, inplace)

    by_torch = functools.partial(_formula, q, k, cos, sin, back, inplace)
    if inplace:  # trying both would turn twice
        return by_triton() if dispatch.triton_runs(q) and dispatch.mode() == "triton" else by_torch()
    key = (q.shape[0], q.shape[1], k.shape[1], dispatch.size_class(q.shape[2]), q.shape[3], cos.shape[-1])
    return dispatch.choose("rotate_qk", q, {"triton": by_triton, "torch": by_torch}, key)


def _formula(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    turned = tuple(_turn(x, *_angles(x, cos, sin), back) if x.shape[2] else x.clone() for x in (q, k))
    if inplace:
        q.copy_(turned[0]), k.copy_(turned[1])
        return q, k
    return turned[0], turned[1]


def _angles(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin as [(B,) n, 1, r/2] in the dtype of x."""
    slots = x.shape[2] // max(1, cos.shape[-2])
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if slots > 1:
        cos, sin = cos.repeat_interleave(slots, dim=-2), sin.repeat_interleave(slots, dim=-2)
    return cos.unsqueeze(-2), sin.unsqueeze(-2)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    half = cos.shape[-1]
    sin = -sin if back else sin
    x = x.transpose(
        1, 2
    )  # heads inside, [B, n, H, D]: the order of the product before and the attention after
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).transpose(1, 2)


class _Rotation(torch.autograd.Function):
    """A rotation's gradient is the rotation back; told so, autograd fills no zeros around the slices."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool, inplace: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotate(q, k, cos, sin, back, inplace)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return *_rotate(*grads, *ctx.saved_tensors, True, False), None, None, None, None


@torch.library.custom_op("latentpt::rotate_qk", mutates_args=())
def _leaf(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    return _in_best_way(q, k, cos, sin, back, False)


@_leaf.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    q, k = (x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (q, k))
    return q, k
