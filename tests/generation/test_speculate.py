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
        hidden, _ = model.think(torch.tensor([ids]), model.method.exact_schedule())
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


def test_what_cannot_speculate_says_so():
    causal = tiny_model(method="latent", num_thoughts=1)
    with pytest.raises(ValueError, match="slot 0 sees only slots 0"):
        generate_speculatively(causal, [[1]], 3)
    with pytest.raises(ValueError, match="slot 0 sees only slots 0"):
        generate_speculatively(tiny_model(), [[1]], 3)
    with pytest.raises(ValueError, match="repetition penalty"):
        generate_speculatively(tiny_model(**STAGE_CAUSAL), [[1]], 3, Sampling(repetition_penalty=1.2))
