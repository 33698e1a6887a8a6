"""Self-speculation: drafts change the work, never the outcome."""

import pytest
import torch

from latentpt.generation.decode import generate
from latentpt.generation.sampling import Sampling, distribution
from latentpt.generation.speculate import generate_speculatively
from tests.conftest import tiny_model

STAGE_CAUSAL = {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"}


@pytest.mark.parametrize("draft", [1, 3, 7])
@pytest.mark.parametrize(
    "thinks", [STAGE_CAUSAL, {"method": "loop", "num_thoughts": 1}], ids=["latent", "loop"]
)
def test_greedy_drafts_end_in_the_greedy_tokens(family, thinks, draft):
    model = tiny_model(family, **thinks)
    prompts = [[1, 2, 3], [5], [7, 8, 9, 10, 11]]
    found = generate_speculatively(model, prompts, 12, draft=draft)
    assert found.found == generate(model, prompts, 12)
    assert 0 < found.kept <= found.drafted


def test_a_stop_id_ends_a_row_inside_a_draft():
    model = tiny_model("llama", **STAGE_CAUSAL)
    free = generate(model, [[1, 2], [3, 4]], 12)
    stop = free[0][4]
    expected = generate(model, [[1, 2], [3, 4]], 12, stop_ids=[stop])
    assert generate_speculatively(model, [[1, 2], [3, 4]], 12, stop_ids=[stop], draft=5).found == expected


def test_sampled_drafts_leave_the_distribution_as_it_is():
    """Frequencies of the next two tokens over many rows against the model's own probabilities."""
    model = tiny_model("pythia", size={"vocab_size": 5}, weights=3.0, **STAGE_CAUSAL)
    warm, rows, prompt = Sampling(temperature=1.3, top_k=4, seed=3), 4000, [1, 2, 4]
    found = generate_speculatively(model, [prompt] * rows, 3, warm, draft=1)
    assert 1 - found.kept / found.drafted > 0.02  # rejections did happen

    def p(ids):
        hidden = model.think(torch.tensor([ids]), model.method.exact_schedule())
        return distribution(model.decoder.head(hidden[:, -1]), warm)[0]

    # With a draft of one, the second token of every row was drafted and verified.
    drawn = torch.tensor(found.found)
    joint = torch.zeros(5, 5, dtype=torch.float64)
    for first, second in drawn[:, :2].tolist():
        joint[first, second] += 1 / rows
    first = p(prompt)
    expected = torch.stack([first[token] * p([*prompt, token]) for token in range(5)]).double()
    assert (joint - expected).abs().max() < 5 * (0.25 / rows) ** 0.5
    assert (joint[expected == 0] == 0).all()


@pytest.mark.parametrize(
    "thinks",
    [
        {"method": "latent", "num_thoughts": 1},
        {"method": "latent", "num_thoughts": 3},
        {"method": "latent_mixture", "num_thoughts": 1},
    ],
    ids=lambda thinks: "-".join(map(str, thinks.values())),
)
def test_causal_thoughts_go_one_step_ahead_to_the_same_tokens(family, thinks):
    model = tiny_model(family, weights=1.0, **thinks)
    prompts = [[1, 2, 3], [5], [7, 8, 9, 10, 11]]
    found = generate_speculatively(model, prompts, 12)
    assert found.found == generate(model, prompts, 12) and found.drafted > 0
    assert generate_speculatively(model, [[4, 4]], 20).found == generate(model, [[4, 4]], 20)


def test_samples_one_step_ahead_follow_the_model():
    model = tiny_model("pythia", size={"vocab_size": 5}, weights=3.0, method="latent", num_thoughts=1)
    warm, rows = Sampling(temperature=1.3, seed=3), 4000
    # A guess stays when all rows keep theirs, so that rows of one batch would hardly ever show a kept guess.
    found = [generate_speculatively(model, [[1, 2]], 2, Sampling(1.3, seed=seed)) for seed in range(600)]
    kept = sum(one.kept for one in found) / sum(one.drafted for one in found)
    together = generate_speculatively(model, [[1, 2]] * rows, 2, warm).found
    assert 0.2 < kept < 0.98

    def p(ids):
        logits = model(torch.tensor([ids]), schedule=model.method.exact_schedule()).logits[:, -1]
        return distribution(logits, warm)[0]

    expected = torch.stack([p([1, 2])[token] * p([1, 2, token]) for token in range(5)])
    for pairs in ([one.found[0] for one in found], together):
        joint = torch.zeros(5, 5)
        for first, second in pairs:
            joint[first, second] += 1 / len(pairs)
        assert (joint - expected).abs().max() < 4.5 * (0.25 / len(pairs)) ** 0.5


def test_what_cannot_speculate_says_so():
    for plain in (tiny_model(), tiny_model(method="pause", num_thoughts=1)):
        with pytest.raises(ValueError, match="needs latent slots that are filled from the slot before"):
            generate_speculatively(plain, [[1]], 3)
    with pytest.raises(ValueError, match="repetition penalty"):
        generate_speculatively(tiny_model(**STAGE_CAUSAL), [[1]], 3, Sampling(repetition_penalty=1.2))
