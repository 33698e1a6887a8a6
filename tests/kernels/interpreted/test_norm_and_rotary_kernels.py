"""Fused add and norm, and rotary, in Triton's interpreter against plain torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from latentpt_kernels import add_norm, add_norms, rotate_qk

from tests.kernels.checks import assert_within_twice, in_precision

pytestmark = pytest.mark.usefixtures("triton_mode")
PRECISIONS = [torch.float32, torch.float16]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_norms(x, residual, weights, biases, kind):
    summed = x if residual is None else x + residual
    normed = []
    for weight, bias in zip(weights, biases, strict=True):
        if kind == "layer":
            normed.append(F.layer_norm(summed, weight.shape, weight, bias, 1e-5))
        else:
            normed.append(F.rms_norm(summed, weight.shape, weight, 1e-5))
    return [*normed, summed]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(
    "shape, count, added", [((1, 8), 1, True), ((17, 80), 2, True), ((2, 3, 33), 1, False)]
)
def test_add_and_norm_are_within_twice_the_error_of_torch(shape, count, added, kind, dtype):
    width = shape[-1]
    tensors = [random(*shape), *([random(*shape, seed=1)] if added else [])]
    tensors += [1 + random(width, seed=2 + i) / 4 for i in range(count)]
    tensors += [random(width, seed=5 + i) for i in range(count)] if kind == "layer" else []
    low = in_precision(dtype, *tensors)

    def parts(leaves):
        rest = leaves[2:] if added else leaves[1:]
        biases = rest[count:] or [None] * count
        return leaves[0], leaves[1] if added else None, rest[:count], biases

    seeds = [random(*shape, seed=20 + i).to(dtype) for i in range(count + 1)]
    results = []
    for leaves in (low, in_precision(dtype, *low), in_precision(torch.float64, *low)):
        if leaves is low:
            normed, summed = add_norms(*parts(leaves), 1e-5, kind)
            out = [*normed, summed]
        else:
            out = plain_norms(*parts(leaves), kind)
        loss = sum(
            (o * seed.to(o.dtype)).sum(dtype=torch.float64) for o, seed in zip(out, seeds, strict=True)
        )
        results.append((*out, *torch.autograd.grad(loss, leaves)))
    for index, (mine, plain, exact) in enumerate(zip(*results, strict=True)):
        assert mine.dtype == dtype
        assert_within_twice(f"result {index}", mine, plain, exact)


def test_one_weight_gives_the_norm_and_the_sum():
    x, residual, weight = random(5, 16), random(5, 16, seed=1), random(16, seed=2)
    normed, summed = add_norm(x, residual, weight)
    torch.testing.assert_close(summed, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(x + residual, (16,), weight, 1e-5))


def plain_rotation(x, cos, sin):
    slots, half = x.shape[2] // cos.shape[-2], cos.shape[-1]
    cos, sin = (part.repeat_interleave(slots, -2).unsqueeze(-3).to(x.dtype) for part in (cos, sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "length, q_slots, k_slots, size, rotated, by_row",
    [(1, 1, 1, 8, 8, False), (17, 3, 3, 80, 20, False), (20, 1, 4, 16, 16, True), (130, 1, 1, 32, 8, True)],
)
def test_rotary_is_within_twice_the_error_of_torch(length, q_slots, k_slots, size, rotated, by_row, dtype):
    angles = random(2, length, rotated // 2, seed=3) if by_row else random(length, rotated // 2, seed=3)
    cos, sin = angles.cos(), angles.sin()
    q = random(2, length * q_slots, 4, size).transpose(1, 2)
    k = random(2, length * k_slots, 2, size, seed=1).transpose(1, 2)
    seeds = [random(*x.shape, seed=9).to(dtype) for x in (q, k)]
    low, results = in_precision(dtype, q, k), []
    for leaves in (low, in_precision(dtype, *low), in_precision(torch.float64, *low)):
        turned = (
            rotate_qk(*leaves, cos, sin)
            if leaves is low
            else [plain_rotation(x, cos.double(), sin.double()) for x in leaves]
        )
        loss = sum((t * seed.to(t.dtype)).sum() for t, seed in zip(turned, seeds, strict=True))
        results.append((*turned, *torch.autograd.grad(loss, leaves)))
    for name, mine, plain, exact in zip(("q", "k", "dq", "dk"), *results, strict=True):
        assert_within_twice(name, mine, plain, exact)


def test_rotary_in_place_leaves_the_other_values_alone():
    q, k = random(1, 2, 6, 16), random(1, 1, 6, 16, seed=1)
    cos, sin = random(6, 4).cos(), random(6, 4).sin()
    expected = [plain_rotation(x, cos, sin) for x in (q, k)]
    turned = rotate_qk(q, k, cos, sin, inplace=True)
    assert turned[0].data_ptr() == q.data_ptr() and turned[1].data_ptr() == k.data_ptr()
    for mine, exact in zip((q, k), expected, strict=True):
        torch.testing.assert_close(mine, exact)
