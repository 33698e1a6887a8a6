"""Triton kernels of the shift that makes the next sweep's input, and of its backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from latentpt_kernels.on_triton.target import target_of


@triton.jit
def latent_shift_fwd_kernel(
    tokens, states, gate, before, out, moved, token_strides, state_strides, before_strides, L, S, d, scale,
    GATE: tl.constexpr, MEASURE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A cell (b, t, s) a program; out [B, L, S, d] is contiguous, moved [2, B L S] float32."""
    cell = tl.program_id(0).to(tl.int64)
    s, t, b = cell % S, cell // S % L, cell // S // L
    column = tl.arange(0, BD)
    inside = column < d
    token = tokens + b * token_strides[0] + t * token_strides[1] + column
    if s == 0:
        value = tl.load(token, mask=inside, other=0.0).to(tl.float32)
    else:
        state = states + b * state_strides[0] + t * state_strides[1] + (s - 1) * state_strides[2] + column
        value = tl.load(state, mask=inside, other=0.0).to(tl.float32) * scale
        if GATE:
            weight = tl.load(gate + column, mask=inside, other=0.0).to(tl.float32)
            value += weight * tl.load(token, mask=inside, other=0.0).to(tl.float32)
    stored = value.to(out.dtype.element_ty)
    tl.store(out + cell * d + column, stored, mask=inside)
    if MEASURE:
        value = stored.to(tl.float32)
        old = before + b * before_strides[0] + t * before_strides[1] + s * before_strides[2] + column
        change = value - tl.load(old, mask=inside, other=0.0).to(tl.float32)
        latent = tl.where(s == 0, 0.0, 1.0)
        tl.store(moved + cell, tl.sum(change * change, 0) * latent)
        tl.store(moved + tl.num_programs(0) + cell, tl.sum(value * value, 0) * latent)


@triton.jit
def latent_shift_bwd_kernel(
    grad, tokens, gate, grad_tokens, grad_states, partial, grad_strides, token_strides, L, S, d, positions, scale,
    GATE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Every P-th position (b, t) a program, all its slots; partial [P, d] sums the gate's gradient."""
    column = tl.arange(0, BD)
    inside = column < d
    total = tl.zeros([BD], tl.float32)
    weight = total
    if GATE:
        weight = tl.load(gate + column, mask=inside, other=0.0).to(tl.float32)
    for position in range(tl.program_id(0), positions, tl.num_programs(0)):
        b, t = tl.cast(position, tl.int64) // L, tl.cast(position, tl.int64) % L
        at = grad + b * grad_strides[0] + t * grad_strides[1] + column
        of_token = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        of_latents = tl.zeros([BD], tl.float32)
        for s in range(1, S):
            value = tl.load(at + s * grad_strides[2], mask=inside, other=0.0).to(tl.float32)
            of_latents += value
            to = grad_states + (tl.cast(position, tl.int64) * (S - 1) + s - 1) * d + column
            tl.store(to, (value * scale).to(grad_states.dtype.element_ty), mask=inside)
        if GATE:
            of_token += weight * of_latents
            token = tl.load(
                tokens + b * token_strides[0] + t * token_strides[1] + column, mask=inside, other=0.0
            )
            total += of_latents * token.to(tl.float32)
        to = grad_tokens + tl.cast(position, tl.int64) * d + column
        tl.store(to, of_token.to(grad_tokens.dtype.element_ty), mask=inside)
    if GATE:
        tl.store(partial + tl.program_id(0) * d + column, total, mask=inside)


def _shape(d: int) -> dict[str, int]:
    block = triton.next_power_of_2(d)
    return {"BD": block, "num_warps": max(1, min(8, block // 512))}


def forward(
    tokens: Tensor,
    states: Tensor,
    gate: Tensor | None,
    before: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The input [B, L, S, d] in `dtype`, and [2] float32: how far latents moved from `before`, squared, and their size."""
    tokens, states = (x if x.stride(-1) == 1 else x.contiguous() for x in (tokens, states))
    batch, length, slots, d = *states.shape[:2], states.shape[2] + 1, states.shape[3]
    out = tokens.new_empty((batch, length, slots, d), dtype=dtype)
    moved = tokens.new_empty((2, 0 if before is None else batch * length * slots), dtype=torch.float32)
    old = out if before is None else before
    latent_shift_fwd_kernel[(batch * length * slots,)](
        tokens, states, tokens if gate is None else gate, old, out, moved, tokens.stride()[:2], states.stride()[:3],
        old.stride()[:3], length, slots, d, scale, GATE=gate is not None, MEASURE=before is not None, **_shape(d),
    )  # fmt: skip
    return out, moved.sum(1)


def backward(
    grad: Tensor, tokens: Tensor, gate: Tensor | None, scale: float, states_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens [B, L, d], of states [B, L, S - 1, d] and of the gate [d] (empty without one)."""
    grad, tokens = (x if x.stride(-1) == 1 else x.contiguous() for x in (grad, tokens))
    batch, length, slots, d = grad.shape
    programs = max(1, min(batch * length, 8 * target_of(grad).processors))
    grad_tokens = tokens.new_empty(batch, length, d)
    grad_states = grad.new_empty((batch, length, slots - 1, d), dtype=states_dtype)
    partial = grad.new_empty((programs, d if gate is not None else 0), dtype=torch.float32)
    latent_shift_bwd_kernel[(programs,)](
        grad, tokens, tokens if gate is None else gate, grad_tokens, grad_states, partial, grad.stride()[:3],
        tokens.stride()[:2], length, slots, d, batch * length, scale, GATE=gate is not None, **_shape(d),
    )  # fmt: skip
    return grad_tokens, grad_states, partial.sum(0) if gate is None else partial.sum(0).to(gate.dtype)
