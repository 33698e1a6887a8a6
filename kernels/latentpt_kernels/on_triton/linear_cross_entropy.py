"""Triton kernel of the loss: softmax, loss and gradient of a chunk's logits, written over the logits.

A program owns a row of V logits. It walks over them once for the maximum and the sum of exponentials, both at a time,
and once more, out of the cache that the first walk filled, to write softmax - onehot where the logits were.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _capped(x, cap):
    """cap tanh(x / cap)."""
    return cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)


@triton.jit
def linear_cross_entropy_kernel(
    logits,
    targets,
    losses,
    stride,
    V,
    ignore,
    z_loss,
    cap,
    GRADIENT: tl.constexpr,
    CAP: tl.constexpr,
    BV: tl.constexpr,
):
    """losses[i] = lse - logit[target] + z_loss lse^2, 0 for ignored rows; logits[i] become the gradient."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    logits += row * stride
    column = tl.arange(0, BV)
    top = tl.full([BV], float("-inf"), tl.float32)
    total = tl.zeros([BV], tl.float32)
    for start in range(0, V, BV):
        x = tl.load(logits + start + column, mask=start + column < V, other=float("-inf")).to(tl.float32)
        if CAP:
            x = tl.where(start + column < V, _capped(x, cap), float("-inf"))
        new_top = tl.maximum(top, x)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - base) + tl.exp(x - base)
        top = new_top
    highest = tl.max(top, 0)
    lse = tl.log(tl.sum(total * tl.exp(top - highest), 0)) + highest
    counted = target != ignore
    place = tl.where(counted, target, 0)
    picked = tl.load(logits + place).to(tl.float32)
    if CAP:
        picked = _capped(picked, cap)
    tl.store(losses + row, tl.where(counted, lse - picked + z_loss * lse * lse, 0.0))
    if GRADIENT:
        slope = tl.where(counted, 1.0 + 2.0 * z_loss * lse, 0.0)
        hit = tl.where(counted, 1.0, 0.0)
        for start in range(0, V, BV):
            x = tl.load(logits + start + column, mask=start + column < V, other=float("-inf")).to(tl.float32)
            if CAP:
                x = _capped(x, cap)
            gradient = tl.exp(x - lse) * slope - tl.where(start + column == place, hit, 0.0)
            if CAP:
                gradient = gradient * (1.0 - (x / cap) * (x / cap))
            tl.store(logits + start + column, gradient.to(logits.dtype.element_ty), mask=start + column < V)


def loss_and_gradient(
    logits: Tensor, targets: Tensor, losses: Tensor, ignore: int, z_loss: float, cap: float, gradient: bool
) -> None:
    """Fill losses [n] float32 from logits [n, V], and with `gradient` turn the logits into their gradient."""
    rows, vocabulary = logits.shape
    block = min(4096, triton.next_power_of_2(vocabulary))
    linear_cross_entropy_kernel[(rows,)](
        logits, targets, losses, logits.stride(0), vocabulary, ignore, z_loss, cap,
        GRADIENT=gradient, CAP=cap > 0, BV=block, num_warps=max(1, min(8, block // 512)),
    )  # fmt: skip
