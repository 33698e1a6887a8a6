"""The next sweep's input: the token in slot 0, and in every latent slot what came out of the slot before it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from latentpt_kernels import dispatch


def latent_shift(
    tokens: Tensor,
    states: Tensor,
    scale: float = 1.0,
    gate: Tensor | None = None,
    before: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """u(t, 0) = tokens(t), u(t, s) = scale states(t, s - 1) + gate * tokens(t), in one kernel.

    tokens [B, L, d] and states [B, L, N, d], any strides; `gate` [d] injects the token again, per channel. Returns u
    [B, L, N + 1, d] in `dtype` (that of tokens by default). With `before`, the last sweep's u, the second result is
    float32 [2]: the sums over latent slots of |u - before|^2 and of |u|^2, which carry no gradient; else None.
    """
    dtype = dtype or tokens.dtype
    compiled = torch.compiler.is_compiling() and dispatch.mode() != "triton"
    if not dispatch.triton_runs(tokens) or compiled:
        return formula(tokens, states, gate, before, scale, dtype)
    wide = torch.float32 if dispatch.interpreted() and dtype == torch.bfloat16 else dtype
    out, moved = _LatentShift.apply(*dispatch.widen(tokens, states, gate, before), scale, wide)
    return out.to(dtype), None if before is None else moved


def formula(
    tokens: Tensor,
    states: Tensor,
    gate: Tensor | None,
    before: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The same in plain torch."""
    latents = states if scale == 1 else states * scale
    if gate is not None:
        latents = latents + gate * tokens.unsqueeze(2)
    out = torch.cat([tokens.unsqueeze(2).to(dtype), latents.to(dtype)], dim=2)
    if before is None:
        return out, None
    with torch.no_grad():
        now, old = out[:, :, 1:].float(), before[:, :, 1:].float()
        return out, torch.stack([(now - old).square().sum(), now.square().sum()])


class _LatentShift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, states: Tensor, gate: Tensor | None, before: Tensor | None, scale: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, moved = torch.ops.latentpt.latent_shift(tokens, states, gate, before, scale, dtype)
        ctx.save_for_backward(tokens if gate is not None else tokens.new_empty(0), gate)
        ctx.scale, ctx.dtypes = scale, (tokens.dtype, states.dtype)
        ctx.mark_non_differentiable(moved)
        return out, moved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tokens, gate = ctx.saved_tensors
        of_tokens, of_states = ctx.dtypes
        grad = grads[0]
        if gate is None and ctx.scale == 1:  # a gradient is a part of the gradient: nothing to compute
            return grad[:, :, 0].to(of_tokens), grad[:, :, 1:].to(of_states), None, None, None, None
        if gate is None:
            tokens = grad[:, :, 0].to(of_tokens)
        found = torch.ops.latentpt.latent_shift_backward(grad, tokens, gate, ctx.scale, of_states)
        return found[0], found[1], None if gate is None else found[2], None, None, None


def _formula_backward(
    grad: Tensor, tokens: Tensor, gate: Tensor | None, scale: float, states_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    latents = grad[:, :, 1:]
    grad_tokens, of_gate = grad[:, :, 0].clone(), grad.new_empty(0, dtype=torch.float32)
    if gate is not None:
        total = latents.sum(2, dtype=torch.float32)
        grad_tokens = grad_tokens + gate * total
        of_gate = (total * tokens).sum((0, 1)).to(gate.dtype)
    return grad_tokens.to(tokens.dtype), (latents * scale).to(states_dtype), of_gate


@torch.library.custom_op("latentpt::latent_shift", mutates_args=())
def _leaf(
    tokens: Tensor,
    states: Tensor,
    gate: Tensor | None,
    before: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from latentpt_kernels.on_triton import latent_shift as ours

    def by_torch() -> tuple[Tensor, Tensor]:
        out, moved = formula(tokens, states, gate, before, scale, dtype)
        return out, out.new_zeros(2, dtype=torch.float32) if moved is None else moved

    arguments = tokens, states, gate, before, scale, dtype
    candidates = {"triton": functools.partial(ours.forward, *arguments), "torch": by_torch}
    return dispatch.choose("latent_shift", tokens, candidates, _key(states))


@_leaf.register_fake
def _(
    tokens: Tensor,
    states: Tensor,
    gate: Tensor | None,
    before: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    batch, length, count, d = states.shape
    out = tokens.new_empty((batch, length, count + 1, d), dtype=dtype)
    return out, tokens.new_empty(2, dtype=torch.float32)


@torch.library.custom_op("latentpt::latent_shift_backward", mutates_args=())
def _leaf_backward(
    grad: Tensor, tokens: Tensor, gate: Tensor | None, scale: float, states_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from latentpt_kernels.on_triton import latent_shift as ours

    arguments = grad, tokens, gate, scale, states_dtype
    candidates = {
        "triton": functools.partial(ours.backward, *arguments),
        "torch": functools.partial(_formula_backward, *arguments),
    }
    return dispatch.choose("latent_shift_backward", grad, candidates, _key(grad))


@_leaf_backward.register_fake
def _(
    grad: Tensor, tokens: Tensor, gate: Tensor | None, scale: float, states_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, slots, d = grad.shape
    of_gate = grad.new_empty(0, dtype=torch.float32) if gate is None else torch.empty_like(gate)
    return (
        tokens.new_empty(batch, length, d),
        grad.new_empty((batch, length, slots - 1, d), dtype=states_dtype),
        of_gate,
    )


def _key(x: Tensor) -> tuple:
    return (dispatch.size_class(x.shape[0] * x.shape[1]), *x.shape[2:])
