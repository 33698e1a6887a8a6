"""Diagnostics against models of which the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentpt.evaluation.diagnostics import Changed, Changes, diagnose_batches, verdict
from latentpt.evaluation.page import diagnostics_page
from latentpt.intervals import Mean
from latentpt.thoughts.measure import sample_sums, summed_loss, validation_loss
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
    assert abs(found.fewer[0].loss - diagnose_batches(plain, BATCHES).loss.value) < 1e-10
    assert all(abs(change.cost.value) > 1e-6 for change in found.replaced.values())


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
    assert abs(apart.loss.value - validation_loss(model, [packed], end_token=36)) < 1e-12
    assert (
        max(apart.residual) < 1e-9
        and apart.loss.value != together.loss.value
        and apart.attention != together.attention
    )


def test_costs_are_paired_sample_by_sample_and_their_errors_follow_from_the_samples():
    model = tiny_model("llama", weights=1.0, **LATENT)
    found = diagnose_batches(model, BATCHES)
    samples = [sample for batch in BATCHES for sample in batch]
    plain = [validation_loss(model, [sample[None]]) for sample in samples]
    fewer = [
        sample_sums(model, sample[None], schedule=model.method.schedule(slots=1)).nats.item() / 8
        for sample in samples
    ]
    differences = np.subtract(fewer, plain)
    cost = found.fewer[0].cost
    assert found.samples == cost.items == 4 and found.looked_at == 3 and found.length == 8
    assert cost.value == pytest.approx(differences.mean()) and found.loss.value == pytest.approx(
        np.mean(plain)
    )
    assert cost.error == pytest.approx(differences.std(ddof=1) / 2)
    assert found.loss.error == pytest.approx(np.std(plain, ddof=1) / 2)
    assert found.replaced["of_another_document"].cost.items == 3  # the batch of one row has no other


def costing(mean, none):
    """What is found out about a model in which the mean instead of the thoughts, and no thoughts, cost so much."""
    found = diagnose_batches(tiny_model(**LATENT), BATCHES)
    changes = {**found.replaced, "mean": Changes(2.0, mean)}
    return replace(found, replaced=changes, fewer={0: Changes(2.0, none)})


@pytest.mark.parametrize(
    "mean, none, said",
    [
        (Mean(0.41, 0.02, 30), Mean(0.9, 0.1, 30), "Replacing the thoughts by their mean costs 0.410 ± 0.020 nats a token: "
         "they are used. Thinking none of them costs 0.90 ± 0.10 nats a token."),
        (Mean(0.01, 0.02, 4), Mean(-0.3, 0.01, 4), "Replacing the thoughts by their mean changes the loss by +0.010 ± 0.020 "
         "nats a token, which may be chance: 4 samples cannot tell whether they are used. Thinking none of them saves 0.300 ± "
         "0.010 nats a token."),
        (Mean(0.0, 0.0, 4), Mean(0.03, 0.02, 4), "Replacing the thoughts by their mean changes nothing: what stands in them is "
         "not used. Thinking none of them changes the loss by +0.030 ± 0.020 nats a token, which may be chance."),
        (Mean(-0.1, 0.01, 9), Mean(0.1, None, 1), "Replacing the thoughts by their mean saves 0.100 ± 0.010 nats a token: they "
         "are used, to no good. Thinking none of them changes the loss by +0.1000 nats a token, which may be chance."),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_figures_allow(mean, none, said):
    found = costing(mean, none)
    if found.samples != mean.items:
        said = said.replace(f"{mean.items} samples", f"{found.samples} samples")
    assert verdict(found) == said


def test_thoughts_that_are_all_alike_are_judged_unused_and_none_are_not_judged():
    pause = tiny_model("llama", method="pause", num_thoughts=1)
    assert "changes nothing: what stands in them is not used" in verdict(diagnose_batches(pause, BATCHES))
    assert verdict(diagnose_batches(tiny_model(), BATCHES)) == "There are no thoughts."


def test_the_page_says_on_how_much_and_which_layers_and_what_is_chance():
    found = costing(Mean(0.01, 0.02, 4), Mean(0.4, 0.02, 4))
    page = diagnostics_page("x", "books (data/books), checkpoint of step 7", found)
    assert "books (data/books), checkpoint of step 7: 4 samples of 8 tokens, 32 predictions" in page
    assert "3 samples, 24 latents of each slot" in page and "the mean of 3 samples" in page
    assert ">layer 0</text>" in page and ">layer 1</text>" in page
    row = next(line for line in page.splitlines() if "states replaced: mean" in line)
    assert "+0.0100</td><td>0.0200</td><td>cannot tell" in row
    assert "cannot tell" not in next(line for line in page.splitlines() if "only 0 of the thoughts" in line)


def test_the_page_stands_alone_and_escapes_names():
    page = diagnostics_page("<run>", "<here>", diagnose_batches(tiny_model(**LATENT), BATCHES))
    assert "&lt;run&gt;" in page and "<run>" not in page and "<here>" not in page and page.count("<svg") == 2
    assert "http" not in page and "src=" not in page
    assert "<svg" in diagnostics_page("plain", "", diagnose_batches(tiny_model(), BATCHES))


@pytest.mark.parametrize("method", ["lrt", "fbt", "t2mlr", "p2n"])
def test_a_carried_state_is_left_out_and_replaced_and_its_loss_without_is_that_of_one_pass(method):
    model = tiny_model("llama", size={"num_layers": 3}, method=method, refinements=9)
    found = diagnose_batches(model, BATCHES)
    assert set(found.replaced) == {"mean", "of_another_document", "noise", "nothing"}
    assert all(abs(one.cost.value) > 1e-6 for one in found.replaced.values())
    sums = summed_loss(model, BATCHES, schedule=one_pass(1))
    assert abs(found.replaced["nothing"].loss - sums.nats / sums.tokens) < 1e-10
    assert max(found.residual) < 1e-9 and found.fewer == {} and found.collapse == [] and found.attention == []


@pytest.mark.parametrize(
    "thoughts",
    [{"method": "smear"}, {"method": "dual_slot", "num_thoughts": 1, "visibility": "stage_causal"}],
)
def test_a_shift_that_is_left_out_leaves_the_plain_decoder(thoughts):
    model = tiny_model("llama", size={"num_layers": 3}, **thoughts)
    plain = tiny_model("llama", size={"num_layers": 3}, embed_scale=model.method.embed_scale)
    found = diagnose_batches(model, BATCHES)
    assert abs(found.replaced["nothing"].loss - diagnose_batches(plain, BATCHES).loss.value) < 1e-10
    assert all(abs(one.cost.value) > 1e-6 for one in found.replaced.values())
    assert len(found.attention) == model.method.slots - 1  # of the one layer that all slots run through
