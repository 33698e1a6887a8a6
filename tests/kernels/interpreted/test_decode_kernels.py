"""Decoding's kernels in Triton's interpreter against float64: every visibility, batch sizes, grouped heads, bf16 weights."""

import pytest
import torch
from latentpt_kernels.decode import Norm, Place, decode_attention, decode_linear, decode_qkv

from tests.kernels.checks import assert_within_twice

pytestmark = pytest.mark.usefixtures("triton_mode")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_torch(function, *tensors):
    """The same call by torch, the floating tensors as given and in float64."""
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTPT_KERNELS", "torch")
        for widen in (False, True):
            results.append(
                function(*(t.double() if widen and t.is_floating_point() else t.clone() for t in tensors))
            )
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("slots, seen", [(1, (0, 1)), (3, (0, 3)), (3, (0, 2)), (3, (1, 2))])
@pytest.mark.parametrize("heads, kv_heads, size", [(2, 1, 80)])
def test_attention_over_the_cache_sees_what_its_visibility_shows(slots, seen, heads, kv_heads, size, dtype):
    q, k, v = (
        random(3, heads, size),
        random(3, kv_heads, 600, size, seed=1),
        random(3, kv_heads, 600, size, seed=2),
    )
    q, k, v = (t.to(dtype) for t in (q, k, v))
    own = seen[1] - 1  # the cell's slot is the last that it sees
    cells = torch.tensor([own, 40 * slots + own, 190 * slots + own], dtype=torch.int32)
    k[0, :, own + 1 :] = float("nan")  # what lies behind the cell is never multiplied

    def attend(q, k, v):
        return decode_attention(q, k.nan_to_num(), v, Place(cells, slots, seen))

    mine = decode_attention(q, k, v, Place(cells, slots, seen))
    assert_within_twice("out", mine, *in_torch(attend, q, k, v))


@pytest.mark.parametrize(
    "rows, activation, kind",
    [
        (1, None, None),
        (1, "swiglu", "rms"),
        (3, "gelu", "layer"),
        (20, "gelu_tanh", "layer"),
        (20, "swiglu", "rms"),
    ],
)
def test_a_linear_layer_with_its_norm_activation_and_residual(rows, activation, kind):
    x, weight, bias = random(rows, 40), random(2 * 34, 40, seed=1) / 6, random(2 * 34, seed=2)
    residual = random(rows, 34 if activation == "swiglu" else 68, seed=3)
    scale, shift = 1 + random(40, seed=4) / 4, random(40, seed=5)

    def apply(x, weight, bias, residual, scale, shift):
        norm = None if kind is None else Norm(scale, shift if kind == "layer" else None, 1e-5, kind)
        return decode_linear(x, weight, bias, norm, residual, activation)

    tensors = x, weight, bias, residual, scale, shift
    assert_within_twice("out", apply(*tensors), *in_torch(apply, *tensors))


@pytest.mark.parametrize(
    "rows, kv_heads, size, rotated", [(1, 4, 16, 16), (2, 2, 20, 8), (3, 2, 16, 16), (18, 1, 16, 0)]
)
def test_queries_keys_and_values_are_turned_and_written_to_their_cells(rows, kv_heads, size, rotated):
    heads, slots, capacity, width = 4, 2, 12, 24
    x, weight = random(rows, width), random((heads + 2 * kv_heads) * size, width, seed=1) / 5
    bias, scale = random(weight.shape[0], seed=2), 1 + random(width, seed=3) / 4
    k, v = (random(rows, kv_heads, capacity, size, seed=s) for s in (4, 5))
    cells = torch.randint(capacity, (rows,), generator=torch.Generator().manual_seed(6)).int()
    angles = random(rows if rows % 2 else 1, rotated // 2, seed=7)  # each row its own, or one for all

    def apply(x, weight, bias, scale, k, v, cos, sin):
        norm, table = Norm(scale, None, 1e-6, "rms"), (cos, sin) if rotated else (None, None)
        q = decode_qkv(x, norm, weight, bias, k, v, Place(cells, slots, (0, slots)), *table)
        return torch.cat([part.flatten() for part in (q, k, v)])

    tensors = x, weight, bias, scale, k, v, angles.cos(), angles.sin()
    plain, exact = in_torch(apply, *tensors)
    assert_within_twice("q, k, v", apply(*tensors), plain, exact)


def test_bfloat16_weights_beside_float32_rows():
    x, weight = random(2, 64), random(32, 64, seed=1, dtype=torch.bfloat16)
    torch.testing.assert_close(decode_linear(x, weight), x @ weight.float().T, rtol=1e-5, atol=1e-5)


def test_rows_that_lie_apart_or_are_one_row_for_all():
    weight, row = random(24, 24, seed=1) / 5, random(1, 24)
    apart = random(3, 48, seed=2)[:, ::2]
    for x, residual in ((row.expand(3, -1), apart), (apart, row.expand(3, -1))):
        expected = residual + x @ weight.T
        torch.testing.assert_close(
            decode_linear(x, weight, residual=residual), expected, rtol=1e-5, atol=1e-5
        )
