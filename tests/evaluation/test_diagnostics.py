"""Diagnostics against models of which the answer is known."""

import pytest
import torch

from latentpt.evaluation.diagnostics import Changed, diagnose_batches
from latentpt.evaluation.page import diagnostics_page
from latentpt.thoughts.measure import summed_loss, validation_loss
from latentpt.thoughts.schedule import one_pass
from tests.conftest import tiny_ids, tiny_model

LATENT = {"method": "latent", "num_thoughts": 2, "refinements": 30}
BATCHES = [tiny_ids(3, 9, seed=1), tiny_ids(1, 9, seed=2)]


def test_all_thoughts_lose_what_the_model_loses_and_none_what_its_first_slot_loses():
    model = tiny_model("llama", weights=1.0, **LATENT)
    found = diagnose_batches(model, BATCHES)
    assert set(found.fewer) == {0, 1} and set(found.replaced) == {"mean", "of_another_document", "noise"}
    plain = tiny_model("llama", weights=1.0, embed_scale=model.method.embed_scale)
    plain.load_state_dict(model.state_dict())
    assert abs(found.fewer[0] - diagnose_batches(plain, BATCHES).loss) < 1e-10
    assert all(abs(loss - found.loss) > 1e-6 for loss in found.replaced.values())


def test_a_converged_solver_has_no_residual_and_a_short_one_has_after_the_first_position():
    model = tiny_model("pythia", weights=1.0, **LATENT)
    assert max(diagnose_batches(model, BATCHES).residual) < 1e-9
    short = tiny_model("pythia", weights=1.0, **{**LATENT, "refinements": 0})
    residual = diagnose_batches(short, BATCHES).residual
    assert residual[0] < 1e-9 and max(residual) > 1e-4 and len(residual) == 8


def test_equal_latents_are_collapsed_and_random_ones_are_not():
    model = tiny_model("llama", method="pause", num_thoughts=1)  # every latent is the same row
    (collapse,) = diagnose_batches(model, BATCHES).collapse
    assert collapse.cosine > 1 - 1e-9 and abs(collapse.size - 1) < 0.5
    (spread,) = diagnose_batches(
        tiny_model("llama", method="sequential_hidden_decoding", num_thoughts=1), BATCHES
    ).collapse
    assert abs(spread.cosine) < 0.5 and spread.effective_rank > 4 and spread.first_share < 0.6


def test_attention_without_queries_is_shared_evenly():
    for thinks in (LATENT, {**LATENT, "visibility": "stage_causal"}):
        model = tiny_model("llama", **thinks)
        with torch.no_grad():
            for block in model.decoder.blocks:
                block.attention.qkv.weight[: 4 * 4] = 0
        found = diagnose_batches(model, BATCHES)
        assert all(abs(mass - 2 / 3) < 1e-6 for mass in found.attention)
        assert abs(found.latent_share - 2 / 3) < 1e-12 and len(found.attention) == 2


def test_a_watch_changes_latents_while_it_looks_on_and_nothing_afterwards():
    model, ids = tiny_model(**LATENT), tiny_ids()
    before = model(ids).logits
    assert not torch.equal(model(ids, watch=Changed(torch.zeros_like)).logits, before)
    assert torch.equal(model(ids).logits, before)


def test_documents_kept_apart_are_diagnosed_apart():
    model = tiny_model("llama", weights=1.0, **LATENT)
    packed = torch.cat([BATCHES[0][:, :5], torch.full((3, 1), 36), BATCHES[0][:, 6:]], dim=1)
    apart, together = diagnose_batches(model, [packed], end_token=36), diagnose_batches(model, [packed])
    assert abs(apart.loss - validation_loss(model, [packed], end_token=36)) < 1e-12
    assert (
        max(apart.residual) < 1e-9 and apart.loss != together.loss and apart.attention != together.attention
    )


def test_the_page_stands_alone_and_escapes_names():
    page = diagnostics_page("<run>", diagnose_batches(tiny_model(**LATENT), BATCHES))
    assert "&lt;run&gt;" in page and "<run>" not in page and page.count("<svg") == 2
    assert "http" not in page and "src=" not in page
    assert "<svg" in diagnostics_page("plain", diagnose_batches(tiny_model(), BATCHES))


@pytest.mark.parametrize("method", ["lrt", "fbt", "t2mlr", "p2n"])
def test_a_carried_state_is_left_out_and_replaced_and_its_loss_without_is_that_of_one_pass(method):
    model = tiny_model("llama", size={"num_layers": 3}, method=method, refinements=9)
    found = diagnose_batches(model, BATCHES)
    assert set(found.replaced) == {"mean", "of_another_document", "noise", "nothing"}
    assert all(abs(loss - found.loss) > 1e-6 for loss in found.replaced.values())
    total, count = summed_loss(model, BATCHES, schedule=one_pass(1))
    assert abs(found.replaced["nothing"] - total / count) < 1e-10
    assert max(found.residual) < 1e-9 and found.fewer == {} and found.collapse == [] and found.attention == []


@pytest.mark.parametrize(
    "thoughts",
    [{"method": "smear"}, {"method": "dual_slot", "num_thoughts": 1, "visibility": "stage_causal"}],
)
def test_a_shift_that_is_left_out_leaves_the_plain_decoder(thoughts):
    model = tiny_model("llama", size={"num_layers": 3}, **thoughts)
    plain = tiny_model("llama", size={"num_layers": 3}, embed_scale=model.method.embed_scale)
    found = diagnose_batches(model, BATCHES)
    assert abs(found.replaced["nothing"] - diagnose_batches(plain, BATCHES).loss) < 1e-10
    assert all(abs(loss - found.loss) > 1e-6 for loss in found.replaced.values())
    assert len(found.attention) == model.method.slots - 1  # of the one layer that all slots run through
