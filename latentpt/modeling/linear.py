"""Linear layers whose matrix may be stored in fewer bits than the numbers it meets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART = 2**20
"""Numbers of the matrix that are widened at a time, so that the copy stays in the cache."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x [.., in] and W [out, in], in the dtype of x, which may be wider than that of W."""
    if weight.dtype.itemsize >= x.dtype.itemsize:
        return F.linear(x, weight, bias)
    parts = weight.split(max(1, PART // weight.shape[1]))
    product = torch.cat([F.linear(x, part.to(x.dtype)) for part in parts], dim=-1)
    return product if bias is None else product + bias


class Linear(nn.Linear):
    """nn.Linear that also takes a matrix stored in fewer bits than its input.

    `multiply` is how it multiplies; decoding replaces it where a faster way fits (`latentpt.generation.narrow`).
    """

    multiply = staticmethod(linear)
    stacked: tuple[int, ...] = ()
    """Rows of the matrices that lie one on the other in the weight, where there are several."""

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out], in the dtype of x."""
        return self.multiply(x, self.weight, self.bias)


class Gate(Linear):
    """A linear layer whose outputs open and close gates; weight decay would pull them half open, so it has none."""

    decays = False
