"""Exports of methods beyond plain slots: spans, carried states, halting. What transformers thinks is what is thought here."""

import pytest
import torch
from transformers import DynamicCache

from latentpt.generation.decode import generate
from latentpt.hub.folders import export_folder
from latentpt.hub.recurrence import EXPORTED
from latentpt.thoughts.documents import document_positions
from tests.conftest import FAMILIES, thinking, tiny_ids, tiny_model
from tests.hub.test_exports import PROMPTS, exact, generate_there, load_there, modules  # noqa: F401  (for every test)

KINDS = {
    **{name: {} for name in EXPORTED},
    "latent-middle": {"method": "latent", "span": "middle", "visibility": "stage_causal"},
    "ponder-last": {"method": "ponder", "span": "last"},
    "pause-first": {"method": "pause", "span": "first"},
    "smear-first": {"method": "smear", "span": "first", "injection": "gate"},
    "smear-norm": {"method": "smear", "injection": "norm"},
    "p2n-all": {"method": "p2n", "span": "all", "injection": "norm"},
    "dual_slot-stage": {"method": "dual_slot", "visibility": "stage_causal"},
    "dual_slot-blind": {"method": "dual_slot", "visibility": "same_slot", "injection": "gate"},
    "hybrid-stage": {"method": "hybrid", "visibility": "stage_causal", "injection": "add"},
    "hybrid-none": {"method": "hybrid", "num_thoughts": 0, "injection": "norm"},
    "lrt-shared": {"method": "lrt", "shared_projections": True},
    "fbt-concat": {"method": "fbt", "fusion": "concat", "match_scale": True},
    "fbt-add": {"method": "fbt", "fusion": "add"},
    "t2mlr-all": {"method": "t2mlr", "span": [0, 3]},
    "alcot-stops": {"method": "alcot", "threshold": 0.8},
    "ponder3-stops": {"method": "ponder3", "threshold": 0.45},
}
STOPPING = ("alcot-stops", "ponder3-stops")
TURNS = [(kind, FAMILIES[number % 3]) for number, kind in enumerate(KINDS)]
"""Every kind in one family; test_exports has every method in all of them."""


def made(tmp_path, kind, family="llama", **more):
    """A model in float64 and what transformers loads of its export."""
    thoughts = {"method": kind, **KINDS[kind]}
    thoughts = {**thinking(thoughts["method"]), **thoughts, **more}
    model = tiny_model(family, size={"num_layers": 3}, weights=1.5, **thoughts)
    export_folder(model, tmp_path / "hf", dtype=torch.float64)
    return model, load_there(tmp_path / "hf").double()


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def calls(there, layer=1):
    """What goes through a block: (rows, positions, slots) of every call."""
    seen = []
    there.decoder.blocks[layer].register_forward_hook(
        lambda module, inputs, found: seen.append(tuple(inputs[0].shape[:3]))
    )
    return seen


@pytest.mark.parametrize(("kind", "family"), TURNS)
def test_logits_and_tokens_are_those_of_exact_decoding_with_a_cache_padded_and_by_beams(
    tmp_path, kind, family
):
    model, there = made(tmp_path, kind, family)
    ids = tiny_ids(2, 6)
    with torch.no_grad():
        expected = exact(model, ids)
        close(there(ids).logits, expected)
        cache = DynamicCache()
        pieces = [there(piece, past_key_values=cache).logits for piece in ids.split([1, 3, 1, 1], dim=1)]
        close(torch.cat(pieces, dim=1), expected)
        for left, right in ((2, 0), (0, 2)):
            padded, mask = (torch.nn.functional.pad(x, (left, right)) for x in (ids, torch.ones_like(ids)))
            close(there(padded, attention_mask=mask).logits[:, left : left + 6], expected)
        assert generate_there(there, PROMPTS, 5) == generate(model, PROMPTS, 5)
        beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(there.generate(ids, **beams), there.generate(ids, **beams, use_cache=False))


@pytest.mark.parametrize("kind", KINDS)
def test_where_positions_begin_again_a_document_begins_into_which_nothing_is_carried(tmp_path, kind):
    model, there = made(tmp_path, kind)
    ids = tiny_ids(2, 8)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1]])
    positions, schedule = document_positions(documents), model.method.exact_schedule()
    with torch.no_grad():
        expected = model(ids, schedule=schedule, documents=documents).logits
        close(there(ids, position_ids=positions).logits, expected)
        cache = DynamicCache()
        for part in (slice(0, 5), slice(5, 7), slice(7, 8)):
            found = there(ids[:, part], position_ids=positions[:, part], past_key_values=cache).logits
            close(found, expected[:, part])
        assert (there(ids).logits - expected).abs().max() > 1e-6


@pytest.mark.parametrize(
    "kind", ["smear", "p2n", "lrt", "fbt", "t2mlr", "hybrid-none", "dual_slot", "dual_slot-stage"]
)
def test_a_token_is_one_forward(tmp_path, kind):
    """Both slots of dual_slot go through the middle layers together; the layers around them run on one."""
    _, there = made(tmp_path, kind)
    seen = [calls(there, layer) for layer in range(3)]
    cache = DynamicCache()
    with torch.no_grad():
        for column in tiny_ids(2, 4).split(1, dim=1):
            there(column, past_key_values=cache)
    slots = 3 if kind.startswith("dual_slot") else 1
    assert seen == [[(2, 1, 1)] * 4, [(2, 1, slots)] * 4, [(2, 1, 1)] * 4]


@pytest.mark.parametrize("kind", ["smear", "mid_loop", "dual_slot-stage", "latent-middle", "alcot"])
def test_a_prompt_is_read_at_once_where_that_is_exact(tmp_path, kind):
    _, there = made(tmp_path, kind)
    seen = calls(there)
    with torch.no_grad():
        there(tiny_ids(2, 6))
    assert seen == [(2, 6, 1)] * (1 if kind == "smear" else 3)


@pytest.mark.parametrize("kind", STOPPING)
def test_a_token_that_stops_is_not_run_again(tmp_path, kind):
    model, there = made(tmp_path, kind)
    ids = tiny_ids(4, 6)
    thought = (model.read(model.tokens(ids), model.method.exact_schedule())[-1].slot_weights > 0).sum()
    seen, cache = calls(there), DynamicCache()
    with torch.no_grad():
        for column in ids.split(1, dim=1):
            there(column, past_key_values=cache)
    assert 4 * 6 < thought < 4 * 6 * 3 and sum(rows for rows, _, _ in seen) == thought


SWEEPS = {
    "p2n": {"refinements": 2},
    "smear": {},
    "mid_loop": {},
    "dual_slot": {"refinements": 1},
    "dual_slot-stage": {},
    "hybrid": {"solver": "gauss_seidel", "refinements": 1},
    "hybrid-stage": {"refinements": 2, "bptt_passes": 2},
    "lrt": {"refinements": 2, "loss_weights": (0.1, 0.3, 0.6)},
    "lrt-shared": {"refinements": 1},
    "fbt": {"refinements": 2},
    "t2mlr": {"refinements": 3, "bptt_passes": 2},
    "alcot": {"thought_price": 0.3},
    "alcot-stops": {"thought_price": 0.3, "correctness": 2.0},
    "ponder3": {"thought_price": 0.3, "refinements": 1},
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_in_training_losses_and_gradients_are_those_of_the_sweeps_here(tmp_path, kind):
    model, there = made(tmp_path, kind, **SWEEPS[kind])
    ids = tiny_ids(2, 7)
    labels = ids.clone()
    labels[0, :3] = -100
    ours = model(ids, labels=labels, schedule=model.method.schedule()).loss
    ours.backward()
    there.train()
    theirs = dict(there.named_parameters())
    for checkpointed in (False, True):
        there.zero_grad()
        if checkpointed:
            there.gradient_checkpointing_enable()
        loss = there(ids, labels=labels).loss
        close(loss, ours.to(loss.dtype), 1e-6)
        loss.backward()
        for name, parameter in model.named_parameters():
            found = torch.zeros_like(parameter) if theirs[name].grad is None else theirs[name].grad
            close(found, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, 1e-6)
