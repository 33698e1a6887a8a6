"""Generation computes what training computes, whatever else is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.finetuning import Fill, latent_forward, latent_generate
from latentpt.finetuning.generate import Switch
from latentpt.generation.decode import generate
from tests.conftest import tiny_model
from tests.finetuning.row_by_row import generate_one

LATENT, EOS = 36, 5
KINDS = ("hidden", "soft", "fusion", "pause")


@st.composite
def prompts(draw):
    token = st.sampled_from([*range(36), LATENT, LATENT, LATENT])
    row = st.lists(token, min_size=0, max_size=6)
    return [[draw(st.integers(0, 35)), *draw(row)] for _ in range(draw(st.integers(1, 4)))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(rows=prompts(), family=st.sampled_from(["llama", "pythia", "gpt2"]), seed=st.integers(0, 3))
def test_a_batch_generates_what_each_row_generates_plainly(rows, family, seed, kind):
    model, fill = tiny_model(family, seed=seed), Fill(kind, LATENT)
    found = latent_generate(model, rows, fill, 6, EOS)
    assert found == [generate_one(model, row, fill, 6, EOS) for row in rows]


def test_a_model_that_comes_to_latents_executes_them():
    model, fill = tiny_model("llama", seed=1), Fill("hidden", LATENT)
    rows = [[1, 2, 3], [4, 5], [9], [11, 7]]
    said = latent_generate(model, rows, fill, 1, None)[0][0]
    with torch.no_grad():  # whenever this token would be likeliest, the latent one is
        model.decoder.head.weight[LATENT] = 1.01 * model.decoder.head.weight[said]
    found = latent_generate(model, rows, fill, 12, None)
    assert any(LATENT in row for row in found)
    assert found == [generate_one(model, row, fill, 12, None) for row in rows]


@pytest.mark.parametrize("thoughts", [{}, {"method": "latent", "num_thoughts": 2}])
def test_without_latents_it_is_ordinary_generation(thoughts, family):
    model = tiny_model(family, **thoughts)
    rows = [[1, 2, 3], [4, 5], [9]]
    found = latent_generate(model, rows, Fill("hidden", LATENT), 6, EOS, Switch("never"))
    with torch.no_grad():
        model.decoder.head.weight[LATENT] = 0
    assert found == generate(model, rows, 6, stop_ids=[EOS])


def test_thinking_models_generate_what_the_training_forward_predicts(family):
    model = tiny_model(family, method="latent", num_thoughts=1, solver="sequential")
    fill, rows = Fill("hidden", LATENT), [[1, 2, LATENT, LATENT, 3], [4, LATENT]]
    for row, new in zip(rows, latent_generate(model, rows, fill, 4, None), strict=True):
        logits = latent_forward(model, torch.tensor([row + new]), fill).logits[0]
        assert new == logits.argmax(-1)[len(row) - 1 : -1].tolist()


def test_a_threshold_thinks_where_the_model_is_unsure_and_no_longer_than_allowed():
    logits = torch.tensor([[0.0, 0.1, 9.0], [8.0, 0.0, 0.0], [0.0, 0.2, 0.0]])
    run = torch.tensor([0, 0, 2])
    assert Switch("threshold", tau=0.9, most=2).choose(logits, 2, run).tolist() == [2, 0, 1]
    assert Switch("never").choose(logits, 2, run).tolist() == [1, 0, 1]
    assert Switch("argmax").choose(logits, 2, run).tolist() == [2, 0, 1]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        latent_generate(tiny_model(), [[1], []], Fill("hidden", LATENT), 2, None)
