"""Triton kernel of rotary position embedding: queries and keys of all heads in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _turn(
    x, out, cos, sin, first, n, x_stride, out_stride, slots,
    R: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BREST: tl.constexpr, BN: tl.constexpr,
    BACK: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    """BN cells of one head; the pair (i, i + R) turns by the angle i of the cell's position, cell // slots."""
    row, i = first + tl.arange(0, BN), tl.arange(0, BR)
    inside = (row[:, None] < n) & (i[None, :] < R)
    angle = (row // slots)[:, None] * R + i[None, :]
    b_cos = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    b_sin = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        b_sin = -b_sin
    at = x + row[:, None].to(tl.int64) * x_stride + i[None, :]
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + R, mask=inside, other=0.0).to(tl.float32)
    to = out + row[:, None].to(tl.int64) * out_stride + i[None, :]
    tl.store(to, (a * b_cos - b * b_sin).to(out.dtype.element_ty), mask=inside)
    tl.store(to + R, (b * b_cos + a * b_sin).to(out.dtype.element_ty), mask=inside)
    if COPY:
        rest = 2 * R + tl.arange(0, BREST)
        kept = (row[:, None] < n) & (rest[None, :] < D)
        value = tl.load(x + row[:, None].to(tl.int64) * x_stride + rest[None, :], mask=kept, other=0.0)
        tl.store(out + row[:, None].to(tl.int64) * out_stride + rest[None, :], value, mask=kept)


@triton.jit
def rotate_qk_kernel(
    q, k, q_out, k_out, cos, sin, q_strides, k_strides, q_out_strides, k_out_strides, table_stride, q_cells, k_cells,
    q_slots, k_slots, heads, R: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BREST: tl.constexpr, BN: tl.constexpr,
    BACK: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    first, b = tl.program_id(0) * BN, tl.program_id(2).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    cos += b * table_stride
    sin += b * table_stride
    if head < heads:
        x, out = (
            q + b * q_strides[0] + head * q_strides[1],
            q_out + b * q_out_strides[0] + head * q_out_strides[1],
        )
        _turn(
            x,
            out,
            cos,
            sin,
            first,
            q_cells,
            q_strides[2],
            q_out_strides[2],
            q_slots,
            R,
            D,
            BR,
            BREST,
            BN,
            BACK,
            COPY,
        )
    else:
        head -= heads
        x, out = (
            k + b * k_strides[0] + head * k_strides[1],
            k_out + b * k_out_strides[0] + head * k_out_strides[1],
        )
        _turn(
            x,
            out,
            cos,
            sin,
            first,
            k_cells,
            k_strides[2],
            k_out_strides[2],
            k_slots,
            R,
            D,
            BR,
            BREST,
            BN,
            BACK,
            COPY,
        )


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    """Turn q [B, H, n, D] and k [B, H_kv, m, D] by contiguous cos and sin [(B,) L, r/2], or back."""
    if not inplace:
        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, heads, n, size = q.shape
    length, half = cos.shape[-2:]
    q_out, k_out = (
        x if inplace else x.new_empty(batch, x.shape[2], x.shape[1], size).transpose(1, 2) for x in (q, k)
    )
    rest = size - 2 * half
    block = max(1, min(64, 4096 // triton.next_power_of_2(max(half, rest, 1))))
    rotate_qk_kernel[(triton.cdiv(max(n, k.shape[2]), block), heads + k.shape[1], batch)](
        q, k, q_out, k_out, cos, sin, q.stride()[:3], k.stride()[:3], q_out.stride()[:3], k_out.stride()[:3],
        cos.stride(0) if cos.dim() == 3 else 0, n, k.shape[2], max(1, n // length), max(1, k.shape[2] // length), heads,
        R=half, D=size, BR=triton.next_power_of_2(half), BREST=triton.next_power_of_2(max(rest, 1)), BN=block,
        BACK=back, COPY=rest > 0 and not inplace,
    )  # fmt: skip
    return q_out, k_out
