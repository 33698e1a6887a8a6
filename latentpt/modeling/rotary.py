"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split layout as in GPT-NeoX and LLaMA."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """cos and sin of the angles, float32 [L, 1 or S, r/2] or [B, L, 1 or S, r/2] with r rotated values per head."""

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, size: int, theta: float) -> Rotary:
    """Angles of int positions [L] or [B, L] for `size` rotated values: t * theta^(-2 i / size), i < size / 2.

    All slots of a position turn by one angle, [(B,) L, 1, r/2].
    """
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    angles = positions.to(torch.float32)[..., None, None] * theta**-exponents
    return Rotary(angles.cos(), angles.sin())


def rotate(x: Tensor, angles: Rotary) -> Tensor:
    """Rotate the first r values of every head of x [B, L, S, H, D]."""
    cos, sin = (part.to(x.dtype)[..., None, :] for part in angles)  # [(B,) L, 1 or S, 1, r/2]
    return _Rotation.apply(x, cos, sin) if x.requires_grad else _turn(x, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class _Rotation(torch.autograd.Function):
    """A rotation's gradient is the rotation back; told so, autograd fills no zeros around the slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grad_outputs[0], cos, -sin), None, None
