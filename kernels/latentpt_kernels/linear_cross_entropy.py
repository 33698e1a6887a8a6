"""Linear layer and cross-entropy in one, in chunks: the logits of all tokens never exist at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt_kernels import dispatch

CHUNK_ROWS = 2048
"""Most rows whose logits are held at a time on a CPU (2048 x 50304 float32 = 412 MB); of small batches it is half."""
FEWEST_ROWS = 256
"""Batches of as few rows are not divided: products of fewer rows are slower."""
CHUNK_LOGITS = 2**28
"""Logits of a chunk on a GPU (512 MB in bfloat16)."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore: int = -100,
    z_loss: float = 0.0,
    chunk_rows: int | None = None,
    cap: float | None = None,
) -> Tensor:
    """Sum over rows of -log softmax(hidden W^T)[target] + z_loss lse^2 in nats; rows with target `ignore` left out.

    With `cap` the logits z are cap tanh(z / cap) (Gemma 2, arXiv 2408.00118, section 2).

    hidden [M, d], weight [V, d], targets int64 [M]; returns a float32 scalar (float64 for float64). When a gradient is
    wanted it is computed chunk by chunk in the same sweep, so that each chunk's logits are made once: three matrix
    products a chunk, two if the weight wants none. The weight's gradient is summed in float32. `z_loss` is the
    coefficient of the squared log-partition (PaLM, arXiv 2204.02311). One backward per graph.
    """
    if not torch.is_grad_enabled():  # autograd functions ask for the gradients of parameters all the same
        hidden, weight = hidden.detach(), weight.detach()
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if dispatch.mode() == "reference":
            return reference(hidden, weight, targets, ignore, z_loss, cap)
        if dispatch.triton_runs(hidden):
            hidden, weight = dispatch.widen(hidden, weight)
        chunk_rows = chunk_rows or _chunk_rows(hidden, weight)
        return _LinearCrossEntropy.apply(hidden, weight, targets, ignore, z_loss, chunk_rows, cap or 0.0)


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, z_loss: float, cap: float | None = None
) -> Tensor:
    """The formula, with all logits at once; differentiable by autograd."""
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    logits = logits if cap is None else (logits / cap).tanh() * cap
    loss = F.cross_entropy(logits, targets, ignore_index=ignore, reduction="sum")
    if z_loss == 0:
        return loss
    return loss + z_loss * (logits.logsumexp(-1).square() * (targets != ignore)).sum()


def _chunk_rows(hidden: Tensor, weight: Tensor) -> int:
    """Rows a chunk: on a GPU by the size of its logits, elsewhere half the batch within bounds."""
    if hidden.is_cuda:
        fitting = max(1024, CHUNK_LOGITS // weight.shape[0])
        return min(8192, 1 << (fitting.bit_length() - 1))
    return min(CHUNK_ROWS, max(FEWEST_ROWS, -(-hidden.shape[0] // 2)))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, z_loss: float, chunk_rows: int,
        cap: float,
    ) -> Tensor:  # fmt: skip
        wants = ctx.needs_input_grad[:2]
        leaf = hidden.is_cuda or dispatch.triton_runs(hidden)
        compute = torch.ops.latentpt.linear_cross_entropy if leaf else functools.partial(_compute, _by_torch)
        loss, grad_hidden, grad_weight = compute(
            hidden, weight, targets, ignore, z_loss, chunk_rows, cap, *wants
        )
        ctx.save_for_backward(grad_hidden if wants[0] else None, grad_weight if wants[1] else None)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place, since nobody else holds them; autograd refuses a second backward through the same graph.
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(grad)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _compute(
    delta: Delta, hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, z_loss: float, chunk_rows: int,
    cap: float, wants_hidden: bool, wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, gradient of hidden and, in float32, of the weight; what is not wanted is empty. A cap of 0 is none."""
    wide, wanted = torch.promote_types(hidden.dtype, torch.float32), wants_hidden or wants_weight
    grad_hidden = torch.empty_like(hidden) if wants_hidden else hidden.new_empty(0)
    grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else weight.new_empty(0, dtype=wide)
    # The same buffers serve every chunk: fresh ones take the system as long to map as their numbers to compute.
    products = hidden.new_empty((min(chunk_rows, hidden.shape[0]), weight.shape[0]))
    widened = (
        products if hidden.dtype == wide or delta is _by_triton else torch.empty_like(products, dtype=wide)
    )
    losses = hidden.new_empty(hidden.shape[0], dtype=wide)
    for start in range(0, hidden.shape[0], chunk_rows):
        rows = slice(start, start + chunk_rows)
        product = torch.mm(hidden[rows], weight.T, out=products[: len(targets[rows])])
        delta(product, widened[: len(product)], targets[rows], losses[rows], ignore, z_loss, cap, wanted)
        if wants_hidden:
            torch.mm(product, weight, out=grad_hidden[rows])
        if wants_weight:
            _add_product(grad_weight, product.T, hidden[rows])
    return losses.sum(), grad_hidden, grad_weight


Delta = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, float, bool], None]
"""Fills the losses [n] of logits [n, V] and, if wanted, writes d loss / d logits over them; may use room [n, V]."""


def _by_triton(
    product: Tensor,
    room: Tensor,
    targets: Tensor,
    losses: Tensor,
    ignore: int,
    z_loss: float,
    cap: float,
    wanted: bool,
) -> None:
    from latentpt_kernels.on_triton.linear_cross_entropy import loss_and_gradient

    loss_and_gradient(product, targets, losses, ignore, z_loss, cap, wanted)


def _by_torch(
    product: Tensor,
    room: Tensor,
    targets: Tensor,
    losses: Tensor,
    ignore: int,
    z_loss: float,
    cap: float,
    wanted: bool,
) -> None:
    narrow = room.dtype != product.dtype
    counted = (targets != ignore)[:, None]
    picked = targets.masked_fill(~counted[:, 0], 0)[:, None]
    logits = room.copy_(product) if narrow else product
    slope: Tensor | None = None  # of the cap
    if cap:
        capped = logits.div_(cap).tanh_()
        slope = 1 - capped.square() if wanted else None
        logits = capped.mul_(cap)
    # -log softmax(logits)[target] = log sum exp(logits - top) + top - logits[target], one exponential each
    top, target = logits.amax(dim=-1, keepdim=True), logits.gather(1, picked)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    lse = total.log() + top
    loss = lse - target if z_loss == 0 else lse - target + z_loss * lse.square()
    losses.copy_((loss * counted).squeeze(1))
    if wanted:
        share = counted if z_loss == 0 else counted * (1 + 2 * z_loss * lse)
        exponentials.mul_(share / total).scatter_add_(1, picked, -counted.to(exponentials.dtype))
        if slope is not None:
            exponentials.mul_(slope)
        if narrow:
            product.copy_(exponentials)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b in the precision of total."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, out=total)
    elif a.is_cuda and not torch.version.hip:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)  # the product is never rounded
    else:
        total.add_(a @ b)


@torch.library.custom_op("latentpt::linear_cross_entropy", mutates_args=())
def _leaf(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, z_loss: float, chunk_rows: int, cap: float,
    wants_hidden: bool, wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = hidden, weight, targets, ignore, z_loss, chunk_rows, cap, wants_hidden, wants_weight
    candidates = {
        "triton": functools.partial(_compute, _by_triton, *arguments),
        "torch": functools.partial(_compute, _by_torch, *arguments),
    }
    key = (dispatch.size_class(hidden.shape[0]), *weight.shape, wants_weight)
    return dispatch.choose("linear_cross_entropy", hidden, candidates, key)


@_leaf.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, z_loss: float, chunk_rows: int, cap: float,
    wants_hidden: bool, wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(hidden.dtype, torch.float32)
    grad_hidden = torch.empty_like(hidden) if wants_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight, dtype=wide) if wants_weight else weight.new_empty(0, dtype=wide)
    return hidden.new_empty((), dtype=wide), grad_hidden, grad_weight
