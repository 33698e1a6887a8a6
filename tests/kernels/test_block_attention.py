"""Attention over key blocks by torch's kernels, merged by log-sum-exp, against one softmax under one mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latentpt_kernels import block_attention
from latentpt_kernels.merged_attention import CPU, Kernel, backward, forward, pieces, visible
from torch.autograd import gradcheck


def random(*shape, seed=0):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def blocks_of(relations, n, m, kv_heads=2):
    return [(random(2, kv_heads, m, 8, seed=2 * i + 1), random(2, kv_heads, m, 8, seed=2 * i + 2), relation)
            for i, relation in enumerate(relations)], random(2, 4, n, 8)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    relations=st.lists(st.sampled_from(["causal", "strict", "all"]), min_size=1, max_size=4),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    kv_heads=st.sampled_from([1, 2, 4]),
    documents=st.booleans(),
)
def test_torch_equals_the_reference_in_values_and_gradients(relations, n, m, kv_heads, documents):
    blocks, q = blocks_of(relations, n, m, kv_heads)
    numbers = None
    if documents:
        numbers = [torch.arange(length).expand(2, -1) // 3 for length in (n, *(m for _ in blocks))]
    leaves = [q, *(t for k, v, _ in blocks for t in (k, v))]
    results = []
    for mode in ("torch", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LATENTPT_KERNELS", mode)
            out, lse = block_attention(q, blocks, documents=numbers)
            results.append(
                (out, lse, *torch.autograd.grad((out * random(*out.shape, seed=99)).sum(), leaves))
            )
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=1e-10)


def test_the_gradient_of_the_merge_passes_a_numerical_check():
    blocks, q = blocks_of(["causal", "strict", "all"], 3, 3)

    def attend(q, *kv):
        return block_attention(q, [(kv[2 * i], kv[2 * i + 1], b[2]) for i, b in enumerate(blocks)])[0]

    assert gradcheck(attend, (q, *(t for k, v, _ in blocks for t in (k, v))))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 8), m=st.integers(0, 8), relation=st.sampled_from(["causal", "strict", "all"]))
def test_pieces_cover_exactly_what_a_relation_shows(n, m, relation):
    seen = torch.zeros(n, m, dtype=torch.bool)
    for rows, count, causal in pieces(n, m, relation):
        part = torch.ones(rows.stop - rows.start, count, dtype=torch.bool)
        assert not causal or part.shape[0] == part.shape[1]
        assert not seen[rows, :count].any()
        seen[rows, :count] |= part.tril() if causal else part
    k = torch.empty(1, 1, m, 1)
    assert torch.equal(seen, visible(torch.empty(1, 1, n, 1), [k, k], [relation])[0, 0])


def test_the_formula_equals_the_flash_kernel_forward_and_backward():
    blocks, q = blocks_of(["causal", "strict", "all"], 5, 5)
    kv, relations = [t for k, v, _ in blocks for t in (k, v)], [relation for *_, relation in blocks]
    results = []
    with torch.no_grad():
        for kernel in (CPU, Kernel):
            out, lse = forward(kernel, q, kv, relations, 0.3)
            results.append((out, lse, *backward(kernel, out.sin(), q, kv, out, lse, relations, 0.3)))
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda k, v: [], "at least one block"),
        (lambda k, v: [(k, v, "later")], "block 0 has the relation 'later'"),
        (lambda k, v: [(k, v[:, :, 1:], "all")], "block 0 has keys"),
        (lambda k, v: [(k[..., 1:], v[..., 1:], "all")], "do not fit queries"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_in_one_sentence(change, message):
    blocks, q = blocks_of(["all"], 3, 4)
    with pytest.raises(ValueError, match=message):
        block_attention(q, change(*blocks[0][:2]))


def test_a_row_whose_document_has_no_key_gives_zero_and_passes_no_gradient():
    blocks, q = blocks_of(["all"], 3, 4)
    numbers = [torch.tensor([[0, 9, 0]] * 2), torch.zeros(2, 4, dtype=torch.int64)]
    out, lse = block_attention(q, blocks, documents=numbers)
    assert not out[:, :, 1].any() and (lse[:, :, 1] == float("-inf")).all()
    grads = torch.autograd.grad(out.sum(), (q, *blocks[0][:2]))
    assert all(g.isfinite().all() for g in grads) and not grads[0][:, :, 1].any()
