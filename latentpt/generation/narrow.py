"""Matrices in fewer bits, for decoding on a CPU.

Decoding reads every matrix once a step to multiply it with one row or two, so on a CPU its speed is that of memory.
A matrix stored in bfloat16 is half as long, and loses nothing if that is what the checkpoint holds; rows stay float32
and so do products and sums. A few rows are multiplied by compiled code that widens the matrix while it reads it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from latentpt.modeling.linear import Linear, linear

FEW_ROWS = 8
"""Rows that the compiled product takes; more are worth a widened copy of the matrix."""


@torch.no_grad()
def narrow_matrices(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the matrix of every linear layer in `dtype`, for decoding; embeddings, norms and biases stay as they are.

    A head that shares its matrix with the embedding gets a copy of its own.
    """
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
            layer.multiply = multiply


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear`, by compiled code where few rows on a CPU meet a narrower matrix."""
    rows = x.numel() // x.shape[-1]
    narrow = weight.dtype.itemsize < x.dtype.itemsize
    if not narrow or x.device.type != "cpu" or not 0 < rows <= FEW_ROWS or torch.is_grad_enabled():
        return linear(x, weight, bias)
    product = few_rows(x.reshape(rows, -1), weight).view(*x.shape[:-1], -1)
    return product if bias is None else product + bias


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for x [n <= FEW_ROWS, in] and a narrower W [out, in]; compiled once for every n, on a CPU."""
    return _compiled(x.shape[0])(weight.detach(), *x.unbind(0))  # a Parameter would be compiled anew


def _products(weight: Tensor, *rows: Tensor) -> Tensor:
    wide = weight.to(rows[0].dtype)
    return torch.stack([(wide * row).sum(-1) for row in rows])


@functools.cache
def _compiled(rows: int) -> Callable[..., Tensor]:
    """The product with a number of rows, any matrix; the plain one where torch.compile does not work."""
    # torch.compile counts recompilations by code object, so each number of rows gets its own.
    own = FunctionType(_products.__code__.replace(co_name=f"_products_{rows}"), globals())
    try:
        generic: Callable[..., Tensor] = torch.compile(own, dynamic=True)
        generic(torch.ones(32, 64, dtype=torch.bfloat16), *torch.ones(rows, 64))
    except Exception as error:  # no compiler, or one that torch cannot use
        warnings.warn(
            f"matrices in fewer bits are widened at every use, which is slow: torch.compile fails here ({_first_line(error)})",
            stacklevel=2,
        )
        return _products
    return generic


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
