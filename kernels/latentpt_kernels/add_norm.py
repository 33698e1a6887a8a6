"""The residual add and the norm after it in one, with one or two affine maps of the same normalised row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt_kernels import dispatch

KINDS = ("rms", "layer")


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    kind: str = "rms",
) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual) of x and residual [.., d], weight and bias [d]; without a residual, of x.

    kind `rms` divides by sqrt(mean x^2 + eps) (arXiv 1910.07467), `layer` subtracts the mean first. Statistics are
    float32. Raises ValueError for another kind.
    """
    (normed,), summed = add_norms(x, residual, [weight], [bias], eps, kind)
    return normed, summed


def add_norms(
    x: Tensor,
    residual: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    eps: float = 1e-5,
    kind: str = "rms",
) -> tuple[list[Tensor], Tensor]:
    """add_norm with one or two weights: the parallel residual of GPT-NeoX norms one row for attention and MLP."""
    if kind not in KINDS:
        raise ValueError(f"the norm {kind!r} is unknown; it may be {' or '.join(KINDS)}")
    compiled = (
        torch.compiler.is_compiling() and dispatch.mode() != "triton"
    )  # inductor fuses the formula itself
    if not dispatch.triton_runs(x) or compiled:
        summed = x if residual is None else x + residual
        return [
            _norm(summed, weight, bias, eps, kind) for weight, bias in zip(weights, biases, strict=True)
        ], summed
    dtype, shape = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype), x.shape
    x, residual = dispatch.widen(x, residual)
    flat = None if residual is None else residual.reshape(-1, shape[-1]).contiguous()
    there = [bias for bias in biases if bias is not None]
    if there and len(there) < len(biases):
        raise ValueError("either both norms have a bias or none")
    x = x.reshape(-1, shape[-1]).contiguous()
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, flat, *weights, *there)
    ):
        *normed, summed = _AddNorm.apply(x, flat, eps, kind == "layer", len(weights), *weights, *there)
    else:
        *normed, summed, _, _ = torch.ops.latentpt.add_norm(
            x, flat, list(weights), there, eps, kind == "layer"
        )
        summed = x if flat is None else summed
    return [n.view(shape).to(dtype) for n in normed], summed.view(shape).to(dtype)


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str) -> Tensor:
    if kind == "layer":
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    normed = F.rms_norm(x, weight.shape, weight, eps)
    return normed if bias is None else normed + bias


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, eps: float, layer: bool, count: int, *affine: Tensor
    ) -> tuple[Tensor, ...]:
        weights, biases = list(affine[:count]), list(affine[count:])
        *normed, summed, mean, rstd = torch.ops.latentpt.add_norm(x, residual, weights, biases, eps, layer)
        summed = x if residual is None else summed
        ctx.save_for_backward(summed, mean, rstd, *weights)
        # Zeros for a sum that nobody reads would be written and read for nothing.
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.biases, ctx.dtypes = layer, bool(biases), (x.dtype, getattr(residual, "dtype", None))
        return *normed, summed if residual is not None else summed.view_as(summed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        summed, mean, rstd, *weights = ctx.saved_tensors
        *of_normed, of_summed = (None if g is None else g.contiguous() for g in grads)
        wanted = [torch.zeros_like(summed) if g is None else g for g in of_normed]
        grad, *affine = torch.ops.latentpt.add_norm_backward(
            wanted, of_summed, summed, weights, ctx.biases, mean, rstd, ctx.layer
        )
        of_x, of_residual = ctx.dtypes
        return grad.to(of_x), None if of_residual is None else grad.to(of_residual), None, None, None, *affine


def formula(
    x: Tensor, residual: Tensor | None, weights: list[Tensor], biases: list[Tensor], eps: float, layer: bool
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """What the forward kernel computes, in plain torch."""
    summed = x if residual is None else x + residual
    wide = summed.float()
    mean = wide.mean(-1)
    centred = wide - mean[:, None] if layer else wide
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    x_hat = centred * rstd[:, None]
    normed = [x_hat * weight for weight in weights]
    return [
        (n + biases[i] if biases else n).to(summed.dtype) for i, n in enumerate(normed)
    ], summed, mean, rstd  # fmt: skip


def formula_backward(
    grads: list[Tensor], grad_summed: Tensor | None, summed: Tensor, weights: list[Tensor], biases: bool, mean: Tensor,
    rstd: Tensor, layer: bool,
) -> list[Tensor]:  # fmt: skip
    """What the backward kernel computes, in plain torch."""
    wide = summed.float()
    x_hat = (wide - mean[:, None] if layer else wide) * rstd[:, None]
    g = sum(grad.float() * weight for grad, weight in zip(grads, weights, strict=True))
    dx = g - x_hat * (g * x_hat).mean(-1, keepdim=True)
    if layer:
        dx = dx - g.mean(-1, keepdim=True)
    dx = dx * rstd[:, None]
    if grad_summed is not None:
        dx = dx + grad_summed
    of_weights = [(grad * x_hat).sum(0).to(w.dtype) for grad, w in zip(grads, weights, strict=True)]
    of_biases = [grad.sum(0, dtype=torch.float32).to(w.dtype) for grad, w in zip(grads, weights, strict=True)]
    return [dx.to(summed.dtype), *of_weights, *(of_biases if biases else [])]


@torch.library.custom_op("latentpt::add_norm", mutates_args=())
def _leaf(
    x: Tensor, residual: Tensor | None, weights: list[Tensor], biases: list[Tensor], eps: float, layer: bool
) -> list[Tensor]:
    from latentpt_kernels.on_triton import add_norm as ours

    arguments = x, residual, weights, biases, eps, layer
    candidates = {
        "triton": functools.partial(ours.forward, *arguments),
        "torch": functools.partial(formula, *arguments),
    }
    normed, summed, mean, rstd = dispatch.choose("add_norm", x, candidates, _key(x))
    return [*normed, x.new_empty(0) if residual is None else summed, mean, rstd]


@_leaf.register_fake
def _(
    x: Tensor, residual: Tensor | None, weights: list[Tensor], biases: list[Tensor], eps: float, layer: bool
) -> list[Tensor]:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    statistics = [x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2)]
    summed = x.new_empty(0) if residual is None else torch.empty_like(x, dtype=dtype)
    return [*(torch.empty_like(x, dtype=dtype) for _ in weights), summed, *statistics]


@torch.library.custom_op("latentpt::add_norm_backward", mutates_args=())
def _leaf_backward(
    grads: list[Tensor], grad_summed: Tensor | None, summed: Tensor, weights: list[Tensor], biases: bool, mean: Tensor,
    rstd: Tensor, layer: bool,
) -> list[Tensor]:  # fmt: skip
    from latentpt_kernels.on_triton import add_norm as ours

    arguments = grads, grad_summed, summed, weights, biases, mean, rstd, layer
    candidates = {
        "triton": functools.partial(ours.backward, *arguments),
        "torch": functools.partial(formula_backward, *arguments),
    }
    return dispatch.choose("add_norm_backward", summed, candidates, _key(summed))


@_leaf_backward.register_fake
def _(
    grads: list[Tensor], grad_summed: Tensor | None, summed: Tensor, weights: list[Tensor], biases: bool, mean: Tensor,
    rstd: Tensor, layer: bool,
) -> list[Tensor]:  # fmt: skip
    affine = [torch.empty_like(w) for w in weights]
    return [torch.empty_like(summed), *affine, *([torch.empty_like(w) for w in weights] if biases else [])]


def _key(x: Tensor) -> tuple:
    return (dispatch.size_class(x.shape[0]), x.shape[1])
