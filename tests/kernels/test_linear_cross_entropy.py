"""The fused loss by torch, in float64, against the formula."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latentpt_kernels import linear_cross_entropy
from latentpt_kernels.linear_cross_entropy import reference


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 25),
    z_loss=st.sampled_from([0.0, 0.1]),
    cap=st.sampled_from([None, 1.5]),
    wants=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_torch_equals_the_formula_whatever_the_chunks(rows, vocabulary, chunk, z_loss, cap, wants):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, dtype=torch.float64, generator=generator) for n in (rows, vocabulary))
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[::4] = -100
    hidden.requires_grad_(wants[0]), weight.requires_grad_(wants[1])
    leaves = [t for t in (hidden, weight) if t.requires_grad]
    results = []
    for loss in (
        linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk_rows=chunk, cap=cap),
        reference(hidden, weight, targets, -100, z_loss, cap),
    ):
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=1e-10)


def test_autocast_multiplies_in_its_dtype_and_sums_in_float32():
    hidden, weight = torch.randn(9, 16), torch.randn(21, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, torch.arange(9))
    exact = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), torch.arange(9))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact)
