"""The latent shift in Triton's interpreter against the formula in float64."""

import pytest
import torch
from latentpt_kernels import latent_shift
from latentpt_kernels.latent_shift import formula

from tests.kernels.checks import assert_within_twice, in_precision

pytestmark = pytest.mark.usefixtures("triton_mode")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("thoughts, scale, gated", [(1, 1.0, False), (3, 1.5, False), (2, 0.5, True)])
def test_shift_gradients_and_residual_are_within_twice_the_error_of_torch(thoughts, scale, gated, dtype):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    tokens, states = random(2, 9, 3, 20)[:, :, 1], random(2, 9, thoughts + 1, 20)[:, :, :-1]
    before, seed = random(2, 9, thoughts + 1, 20).to(dtype), random(2, 9, thoughts + 1, 20).to(dtype)
    leaves = in_precision(dtype, tokens, states, *([random(20)] if gated else []))
    results = []
    for low in (leaves, in_precision(dtype, *leaves), in_precision(torch.float64, *leaves)):
        gate = low[2] if gated else None
        if low is leaves:
            out, moved = latent_shift(low[0], low[1], scale, gate, before)
            now, old = out[:, :, 1:].double(), before[:, :, 1:].double()
            sums = torch.stack([(now - old).square().sum(), now.square().sum()])
            torch.testing.assert_close(moved.double(), sums, rtol=1e-6, atol=0)
        else:
            out, _ = formula(low[0], low[1], gate, before.to(low[0].dtype), scale, low[0].dtype)
        results.append((out, *torch.autograd.grad((out * seed.to(out.dtype)).sum(), low)))
    for name, mine, plain, exact in zip(("u", "dtokens", "dstates", "dgate"), *results, strict=False):
        assert_within_twice(name, mine, plain, exact)


def test_the_input_may_have_another_dtype_than_the_token():
    u, moved = latent_shift(torch.ones(1, 2, 4), torch.ones(1, 2, 1, 4), dtype=torch.float16)
    assert u.dtype == torch.float16 and moved is None and torch.equal(u, torch.ones_like(u))
