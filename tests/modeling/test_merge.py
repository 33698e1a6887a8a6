"""Attention over key blocks against one explicit mask, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from latentpt.modeling.merge import KeyBlock, Relation, attend_blocks, attend_dense
from tests.conftest import tiny_ids, tiny_model

RELATIONS = [Relation.CAUSAL, Relation.STRICT, Relation.ALL]


def blocks_of(relations, n, kv_heads, prefix, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for relation in relations:
        length = prefix if relation is Relation.ALL else n
        k, v = (torch.randn(2, kv_heads, length, 8, dtype=dtype, generator=generator) for _ in "kv")
        blocks.append(KeyBlock(k.requires_grad_(), v.requires_grad_(), relation))
    q = torch.randn(2, 4, n, 8, dtype=dtype, generator=generator, requires_grad=True)
    return q, blocks


@settings(max_examples=40, deadline=None)
@given(
    rest=st.lists(st.sampled_from(RELATIONS), max_size=4),
    n=st.integers(1, 9),
    kv_heads=st.sampled_from([1, 2, 4]),
    prefix=st.integers(1, 5),
)
def test_merged_blocks_equal_one_masked_softmax_in_values_and_gradients(rest, n, kv_heads, prefix):
    q, blocks = blocks_of([Relation.CAUSAL, *rest], n, kv_heads, prefix)
    leaves = [q, *(t for b in blocks for t in (b.k, b.v))]
    weights = torch.randn(2, 4, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for attend in (attend_blocks, attend_dense):
        out = attend(q, blocks)
        results.append((out, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, torch.zeros_like(ours) if reference is None else reference, atol=1e-12, rtol=1e-10
        )


def test_the_gradient_of_merged_attention_passes_a_numerical_check():
    q, blocks = blocks_of([Relation.CAUSAL, Relation.STRICT, Relation.ALL], 3, 4, 2)

    def attend(q, *kv):
        return attend_blocks(
            q, [KeyBlock(kv[2 * i], kv[2 * i + 1], b.relation) for i, b in enumerate(blocks)]
        )

    assert gradcheck(attend, (q, *(t for b in blocks for t in (b.k, b.v))))


@pytest.mark.parametrize("kernels", ["torch", "reference"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("solver", ["jacobi", "gauss_seidel"])
def test_a_training_step_through_the_kernels_package_is_the_same(family, solver, apart, kernels, monkeypatch):
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2]] * 2) if apart else None
    losses, gradients = [], []
    for setting in ("", kernels):
        monkeypatch.setenv("LATENTPT_KERNELS", setting)
        model = tiny_model(family, method="latent", num_thoughts=1, refinements=1, solver=solver)
        loss = model(tiny_ids(), labels=tiny_ids(), documents=documents, return_logits=False).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0, check_dtype=False)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_merged_attention_in_bfloat16_is_as_close_as_plain_attention():
    q, blocks = blocks_of([Relation.CAUSAL, Relation.STRICT], 64, 4, 2)
    low_q, low = q.bfloat16(), [KeyBlock(b.k.bfloat16(), b.v.bfloat16(), b.relation) for b in blocks]
    exact = attend_dense(q, blocks)
    ours = (attend_blocks(low_q, low).double() - exact).abs().max()
    plain = (attend_dense(low_q, low).double() - exact).abs().max()
    assert ours <= 2 * plain
