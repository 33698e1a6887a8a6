"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split layout as in GPT-NeoX and LLaMA."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.modeling.config import ModelConfig, RopeScaling


class Rotary(NamedTuple):
    """cos and sin of the angles, float32 [L, 1 or S, r/2] or [B, L, 1 or S, r/2] with r rotated values per head."""

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, config: ModelConfig) -> Rotary:
    """Angles t f_i of int positions t [L] or [B, L], f_i = theta^(-2 i / r) or what `config.rope_scaling` makes of it.

    All slots of a position turn by one angle, [(B,) L, 1, r/2]. Computed in float32, in the order of operations of
    transformers, so that the two agree to the digit.
    """
    turning, factor = frequencies(positions, config)
    angles = positions.to(torch.float32)[..., None, None] * turning
    return Rotary(angles.cos() * factor, angles.sin() * factor)


def frequencies(positions: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """Frequencies float32 [r/2] at int positions of any shape, and the factor on cos and sin."""
    size, scaling = config.rotary_size, config.rope_scaling
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    if scaling is None:
        return 1.0 / config.rope_theta**exponents, 1.0
    if scaling.kind == "dynamic":
        # NTK-aware (bloc97, emozilla 2023): as long as the text, whatever was trained on
        length = (positions.amax() + 1).clamp(min=config.max_positions)
        grown = scaling.factor * length / config.max_positions - (scaling.factor - 1)
        return 1.0 / (config.rope_theta * grown ** (size / (size - 2))) ** exponents, 1.0
    plain = 1.0 / config.rope_theta**exponents
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(plain, config.rope_theta, scaling), _yarn_factor(scaling)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1 (arXiv 2407.21783): long waves divided, short ones kept, a linear passage in between."""
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_positions
    waves = 2 * math.pi / plain
    share = ((original / waves - low) / (high - low)).clamp(0, 1)
    between = (1 - share) * plain / scaling.factor + share * plain
    return torch.where(share <= 0, plain / scaling.factor, torch.where(share >= 1, plain, between))


def _yarn(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2)."""
    size = 2 * len(plain)

    def turning(times: float) -> float:
        """The index of the frequency that turns so often in the original length."""
        return size * math.log(scaling.original_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning(scaling.beta_fast), turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    indices = torch.arange(len(plain), device=plain.device, dtype=torch.float32)
    kept = 1 - ((indices - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - kept) + plain * kept


def _yarn_factor(scaling: RopeScaling) -> float:
    """YaRN's factor on cos and sin, which makes attention sharper (equation 22)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return grown(scaling.mscale) / grown(scaling.mscale_all_dim)
    return grown(1.0)


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
