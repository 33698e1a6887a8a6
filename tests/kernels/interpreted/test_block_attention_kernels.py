"""Attention over key blocks in Triton's interpreter against one float64 softmax, values and gradients."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from latentpt_kernels import block_attention
from latentpt_kernels.merged_attention import dense

from tests.kernels.checks import assert_within_twice, in_precision

RELATIONS = ["causal", "strict", "all"]
PRECISIONS = [torch.float32, torch.float16]
pytestmark = pytest.mark.usefixtures("triton_mode")


def random_blocks(relations, n, size, heads=2, kv_heads=1, prefix=37, rows=1, seed=0):
    """q and the blocks' keys and values, with strides as modeling's: heads inside, keys a column of several."""
    generator = torch.Generator().manual_seed(seed)

    def random(m, heads, step):
        whole = torch.randn(rows, m * step, heads, size, generator=generator)
        return whole[:, ::step].transpose(1, 2)

    q, kv = random(n, heads, 1), []
    for index, relation in enumerate(relations):
        m = prefix if relation == "all" else n
        kv += [random(m, kv_heads, 1 + index), random(m, kv_heads, 1 + index)]
    return q, kv


def random_documents(q, kv, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [t.shape[2] for t in (q, *kv[::2])]
    numbers = [
        torch.randint(3, (q.shape[0], length), generator=generator).sort().values for length in lengths
    ]
    # Blocks of the queries' own length hold the same positions, so that every query's own key is of its document.
    return [
        numbers[0] if length == lengths[0] else other for length, other in zip(lengths, numbers, strict=True)
    ]


def compare(relations, n, size, dtype, documents=False, **sizes):
    q, kv = random_blocks(relations, n, size, **sizes)
    numbers = random_documents(q, kv) if documents else []
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    low = in_precision(dtype, q, *kv)
    for precision in (dtype, torch.float64):
        leaves = in_precision(precision, *low)
        out, lse = dense(leaves[0], leaves[1:], relations, size**-0.5, numbers)
        grads = torch.autograd.grad((out * weights.to(out.dtype)).sum(), leaves)
        results.append((out, lse, *grads))
    strided = [t.detach().to(dtype).requires_grad_() for t in (q, *kv)]
    blocks = list(zip(strided[1::2], strided[2::2], relations, strict=True))
    out, lse = block_attention(strided[0], blocks, documents=[*numbers] or None)
    ours = (out, lse, *torch.autograd.grad((out * weights).sum(), strided))
    names = ["out", "lse", "dq", *(f"d{name}{index}" for index in range(len(relations)) for name in "kv")]
    for name, mine, plain, exact in zip(names, ours, *results, strict=True):
        assert_within_twice(name, mine, plain, exact)
        assert mine.dtype == (torch.float32 if name == "lse" else dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "relations, n, size",
    [
        (["causal"], 1, 32),
        (["causal", "strict"], 17, 64),
        (["causal", "strict", "all"], 128, 80),
        (["causal", "causal", "strict", "all"], 300, 32),
        (["causal", "all"], 70, 96),
        (["all", "causal"], 65, 128),
        (["causal", "strict"], 33, 256),
    ],
)
def test_attention_and_its_gradients_are_within_twice_the_error_of_torch(relations, n, size, dtype):
    compare(relations, n, size, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_document_numbers_hide_what_a_dense_mask_hides(dtype):
    compare(["causal", "strict", "all"], 200, 32, dtype, documents=True)


@settings(max_examples=5, deadline=None, phases=[Phase.generate], derandomize=True)
@given(
    relations=st.lists(st.sampled_from(RELATIONS), min_size=1, max_size=3),
    n=st.integers(1, 70),
    size=st.sampled_from([8, 16, 20, 32]),
    kv_heads=st.sampled_from([1, 2]),
    rows=st.integers(1, 2),
    prefix=st.integers(1, 70),
    documents=st.booleans(),
)
def test_any_mixture_of_blocks_and_lengths(relations, n, size, kv_heads, rows, prefix, documents):
    compare(relations, n, size, torch.float32, documents, kv_heads=kv_heads, rows=rows, prefix=prefix)


def test_rows_that_see_no_key_give_zero_and_pass_no_gradient():
    q, kv = random_blocks(["strict"], 5, 16)
    q, k, v = (t.requires_grad_() for t in (q, *kv))
    out, lse = block_attention(q, [(k, v, "strict")])
    assert torch.equal(out[:, :, 0], torch.zeros_like(out[:, :, 0]))
    assert (lse[:, :, 0] == float("-inf")).all() and lse[:, :, 1:].isfinite().all()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads) and not grads[0][:, :, 0].any()


def test_bfloat16_runs_in_float32_and_comes_back_rounded():
    q, kv = random_blocks(["causal"], 20, 32)
    q, k, v = (t.bfloat16() for t in (q, *kv))
    out, lse = block_attention(q, [(k, v, "causal")])
    exact, _ = dense(q.double(), [k.double(), v.double()], ["causal"], 32**-0.5)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, atol=2**-7, rtol=2**-8)
