"""Triton kernels of residual add and norm: a row is read once, forward and backward; one x_hat serves two affine maps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from latentpt_kernels.on_triton.target import target_of

PROGRAMS_PER_PROCESSOR = 4
"""Programs of the backward, each with its partial sums of the weights' gradients."""


@triton.jit
def add_norm_fwd_kernel(
    x, residual, weight, bias, weight2, bias2, summed, normed, normed2, mean, rstd, d, eps,
    ADD: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr, TWO: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One row a program; statistics in float32 of the sum as it is stored."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BD)
    inside = column < d
    b_x = tl.load(x + row * d + column, mask=inside, other=0.0)
    if ADD:
        total = b_x.to(tl.float32) + tl.load(residual + row * d + column, mask=inside, other=0.0).to(
            tl.float32
        )
        b_x = total.to(summed.dtype.element_ty)
        tl.store(summed + row * d + column, b_x, mask=inside)
    b_x = b_x.to(tl.float32)
    if LAYER:
        b_mean = tl.sum(b_x, 0) / d
        tl.store(mean + row, b_mean)
        b_x = tl.where(inside, b_x - b_mean, 0.0)
    b_rstd = 1 / tl.sqrt(tl.sum(b_x * b_x, 0) / d + eps)
    tl.store(rstd + row, b_rstd)
    x_hat = b_x * b_rstd
    y = x_hat * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * d + column, y.to(normed.dtype.element_ty), mask=inside)
    if TWO:
        y = x_hat * tl.load(weight2 + column, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            y += tl.load(bias2 + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed2 + row * d + column, y.to(normed2.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_bwd_kernel(
    summed, weight, weight2, mean, rstd, grad, grad2, grad_summed, grad_x, partial, rows, d,
    LAYER: tl.constexpr, BIAS: tl.constexpr, TWO: tl.constexpr, PASSED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Every P-th row a program: grad_x, and partial sums [P, 4, d] of the gradients of weights and biases."""
    program = tl.program_id(0)
    column = tl.arange(0, BD)
    inside = column < d
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    w2 = w
    if TWO:
        w2 = tl.load(weight2 + column, mask=inside, other=0.0).to(tl.float32)
    sum_w, sum_b = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    sum_w2, sum_b2 = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * d + column
        b_rstd = tl.load(rstd + row)
        x_hat = tl.load(summed + at, mask=inside, other=0.0).to(tl.float32)
        if LAYER:
            x_hat = tl.where(inside, x_hat - tl.load(mean + row), 0.0)
        x_hat = x_hat * b_rstd
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        sum_w += dy * x_hat
        sum_b += dy
        g = dy * w
        if TWO:
            dy = tl.load(grad2 + at, mask=inside, other=0.0).to(tl.float32)
            sum_w2 += dy * x_hat
            sum_b2 += dy
            g += dy * w2
        dx = g - x_hat * (tl.sum(g * x_hat, 0) / d)
        if LAYER:
            dx -= tl.sum(g, 0) / d
        dx = dx * b_rstd
        if PASSED:
            dx += tl.load(grad_summed + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=inside)
    partial += program.to(tl.int64) * 4 * d + column
    tl.store(partial, sum_w, mask=inside)
    if BIAS:
        tl.store(partial + d, sum_b, mask=inside)
    if TWO:
        tl.store(partial + 2 * d, sum_w2, mask=inside)
        if BIAS:
            tl.store(partial + 3 * d, sum_b2, mask=inside)


def _shape(d: int) -> dict[str, int]:
    block = triton.next_power_of_2(d)
    return {"BD": block, "num_warps": max(1, min(16, block // 512))}


def forward(
    x: Tensor, residual: Tensor | None, weights: list[Tensor], biases: list[Tensor], eps: float, layer: bool
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """One normed tensor a weight, the sum (x itself without a residual), mean and 1 / std float32 [M]; x [M, d]."""
    rows, d = x.shape
    summed = (
        x if residual is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))
    )
    normed = [torch.empty_like(summed) for _ in weights]
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    bias = biases or weights
    if rows:
        add_norm_fwd_kernel[(rows,)](
            x, x if residual is None else residual, weights[0], bias[0], weights[-1], bias[-1], summed, normed[0],
            normed[-1], mean, rstd, d, eps,
            ADD=residual is not None, LAYER=layer, BIAS=bool(biases), TWO=len(weights) == 2, **_shape(d),
        )  # fmt: skip
    return normed, summed, mean, rstd


def backward(
    grads: list[Tensor], grad_summed: Tensor | None, summed: Tensor, weights: list[Tensor], biases: bool, mean: Tensor,
    rstd: Tensor, layer: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the sum, of the weights and, with biases, of those, in that order."""
    rows, d = summed.shape
    programs = max(1, min(rows, PROGRAMS_PER_PROCESSOR * target_of(summed).processors))
    grad_x, partial = torch.empty_like(summed), summed.new_empty((programs, 4, d), dtype=torch.float32)
    add_norm_bwd_kernel[(programs,)](
        summed, weights[0], weights[-1], mean, rstd, grads[0], grads[-1],
        summed if grad_summed is None else grad_summed, grad_x, partial, rows, d,
        LAYER=layer, BIAS=biases, TWO=len(weights) == 2, PASSED=grad_summed is not None, **_shape(d),
    )  # fmt: skip
    of_weights = [partial[:, 2 * i].sum(0).to(w.dtype) for i, w in enumerate(weights)]
    of_biases = [partial[:, 2 * i + 1].sum(0).to(w.dtype) for i, w in enumerate(weights)] if biases else []
    return [grad_x, *of_weights, *of_biases]
