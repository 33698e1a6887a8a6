"""Linear layer and cross-entropy in one, in chunks: the logits of all tokens never exist at once."""

from __future__ import annotations

from typing import Any

import latentpt_kernels
import torch
from latentpt_kernels import dispatch
from torch import Tensor

IGNORE = -100
"""Target of positions that carry no loss."""
CHUNK_ROWS = 2048
"""Most rows whose logits are held at a time (2048 x 50304 float32 = 412 MB); of small batches it is half."""
FEWEST_ROWS = 256
"""Batches of as few rows are not divided: products of fewer rows are slower."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Sum over rows of -log softmax(hidden W^T)[target] in nats, rows with target -100 left out.

    hidden [M, d], weight [V, d], targets int64 [M]; returns a float32 (or float64) scalar. When a gradient is wanted
    it is computed chunk by chunk in the same sweep, so that each chunk's logits are made once (three matrix
    products a chunk, none repeated); the weight's gradient is summed in float32.
    """
    return nats_of_rows(hidden, weight, targets, chunk_rows)[0]


def nats_of_rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, and the nats of every row [M], 0 where the target is -100; these carry no gradient."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():  # autograd functions ask for the gradients of parameters all the same
        hidden, weight = hidden.detach(), weight.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        if dispatch.wanted(hidden):
            return latentpt_kernels.nats_of_rows(hidden, weight, targets, IGNORE)
        found: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(hidden, weight, targets, chunk_rows)
        return found


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        nats = hidden.new_empty(hidden.shape[0], dtype=wide)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        # The same buffers serve every chunk: fresh ones take the system as long to map as their numbers to compute.
        chunk_rows = min(chunk_rows, max(FEWEST_ROWS, -(-hidden.shape[0] // 2)))
        shape = (min(chunk_rows, hidden.shape[0]), weight.shape[0])
        products = hidden.new_empty(shape)
        widened = None if hidden.dtype == wide else products.new_empty(shape, dtype=wide)
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            counted = (targets[rows] != IGNORE)[:, None]
            picked = targets[rows].clamp(min=0)[:, None]
            product = torch.mm(hidden[rows], weight.T, out=products[: len(picked)])
            logits = product if widened is None else widened[: len(picked)].copy_(product)
            # -log softmax(logits)[target] = log sum exp(logits - top) + top - logits[target], one exponential each
            top, target = logits.amax(dim=-1, keepdim=True), logits.gather(1, picked)
            exponentials = logits.sub_(top).exp_()
            total = exponentials.sum(dim=-1, keepdim=True)
            nats[rows] = ((total.log() + top - target) * counted)[:, 0]
            if grad_hidden is None and grad_weight is None:
                continue
            # d loss / d logits = softmax(logits) - onehot(target), in place of the logits
            delta = exponentials.mul_(counted / total)
            delta = delta.scatter_add_(1, picked, -counted.to(wide))
            delta = delta if widened is None else product.copy_(delta)
            if grad_hidden is not None:
                torch.mm(delta, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, delta.T, hidden[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad, _ = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place, since nobody else holds them; autograd refuses a second backward through the same graph.
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(grad)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, with a product of lower precision widened before it is added."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, out=total)
    else:
        total.add_(a @ b)
