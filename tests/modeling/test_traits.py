"""Traits of the decoder that families choose among: every thought method works under each of them."""

import pytest
import torch

from latentpt.modeling.loss import linear_cross_entropy, soft_cap
from latentpt.thoughts.registry import METHODS
from tests.conftest import thinking, tiny_ids, tiny_model

TRAITS = {
    "head-norm": {"qk_norm": "head"},
    "full-norm-after": {"qk_norm": "full", "norm_place": "post"},
    "norms-on-both-sides": {"norm_place": "both", "norm_offset": 1.0, "activation": "geglu"},
    "parallel-norms-on-both-sides": {"norm_place": "both", "parallel_residual": True},
    "biases-of-queries": {"qkv_bias": True},
    "biases-of-the-rest": {"bias": True, "qkv_bias": False, "out_bias": False},
    "cap": {"logit_softcap": 3.0, "tie_embeddings": True},
    "longer": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_positions": 4}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trait", TRAITS)
def test_exact_schedules_equal_thinking_cell_by_cell(trait, method):
    model = tiny_model("llama", size=TRAITS[trait], **thinking(method))
    ids = tiny_ids(2, 6)
    cache = model.cache(2, 6)
    with torch.no_grad():
        exact = model(ids, schedule=model.method.exact_schedule()).logits
        hidden = [model.think(ids[:, t : t + 1], model.method.exact_schedule(), cache) for t in range(6)]
        torch.testing.assert_close(model.decoder.head(torch.cat(hidden, 1)), exact, atol=1e-9, rtol=0)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("trait", TRAITS)
def test_fresh_norms_change_nothing(trait):
    model = tiny_model("llama", size=TRAITS[trait])
    model.initialize(0)
    norms = [p + model.config.norm_offset for name, p in model.named_parameters() if "norm" in name]
    assert norms and all((p == 1).all() for p in norms)


@pytest.mark.parametrize("chunk", [3, 100])
def test_the_loss_of_capped_logits_and_its_gradients_are_those_of_the_formula(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 3, -100, 5, 10, 2, 2])
    leaves = (hidden, weight)
    ours = linear_cross_entropy(hidden, weight, targets, cap=1.5, chunk_rows=chunk)
    found = torch.autograd.grad(ours, leaves)
    logits = soft_cap(hidden @ weight.T, 1.5)
    assert logits.abs().max() < 1.5
    whole = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(ours, whole)
    for one, other in zip(found, torch.autograd.grad(whole, leaves), strict=True):
        torch.testing.assert_close(one, other)
