"""The fused loss in Triton's interpreter against the formula in float64."""

import pytest
import torch
from latentpt_kernels import linear_cross_entropy
from latentpt_kernels.linear_cross_entropy import reference

from tests.kernels.checks import assert_within_twice, in_precision

pytestmark = pytest.mark.usefixtures("triton_mode")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows, vocabulary, chunk", [(1, 7, None), (17, 300, 5), (6, 5003, None)])
@pytest.mark.parametrize("z_loss, cap", [(0.0, None), (1e-2, None), (1e-2, 2.0)])
def test_loss_and_gradients_are_within_twice_the_error_of_torch(rows, vocabulary, chunk, z_loss, cap, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 24, generator=generator)
    weight = torch.randn(vocabulary, 24, generator=generator) / 5
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[1::3] = -100
    results = []
    low = in_precision(dtype, hidden, weight)
    for precision in (dtype, torch.float64):
        leaves = in_precision(precision, *low)
        loss = reference(*leaves, targets, -100, z_loss, cap)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    loss = linear_cross_entropy(*low, targets, z_loss=z_loss, chunk_rows=chunk, cap=cap)
    ours = (loss, *torch.autograd.grad(loss, low))
    assert loss.dtype == torch.float32
    for name, mine, plain, exact in zip(("loss", "dhidden", "dweight"), ours, *results, strict=True):
        assert_within_twice(name, mine, plain, exact)


def test_no_weight_gradient_is_made_when_none_is_wanted():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    loss = linear_cross_entropy(hidden, weight, torch.arange(5))
    loss.backward()
    assert weight.grad is None and hidden.grad.isfinite().all()
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, torch.arange(5)), loss)


def test_another_ignored_label_is_ignored():
    hidden, weight = torch.randn(4, 8), torch.randn(11, 8)
    targets = torch.tensor([1, 7, 7, 2])
    whole = linear_cross_entropy(hidden, weight, targets, ignore=7)
    torch.testing.assert_close(whole, linear_cross_entropy(hidden[[0, 3]], weight, targets[[0, 3]]))
