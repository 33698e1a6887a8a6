"""Cached decoding against the full forward."""

import pytest
import torch

from latentpt.generation.decode import Session, generate
from latentpt.generation.sampling import Sampling, choose, uniform
from latentpt.seeding import stream
from latentpt.thoughts.measure import validation_loss
from latentpt.thoughts.registry import METHODS
from latentpt.thoughts.schedule import sequential
from tests.conftest import thinking, tiny_ids, tiny_model

KINDS = [
    {"method": "vanilla"},
    {"method": "latent", "num_thoughts": 1},
    {"method": "latent", "num_thoughts": 2},
    {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"},
    *(thinking(name) for name in METHODS if name not in ("vanilla", "latent")),
]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def kind(request):
    return request.param


def full_logits(model, ids):
    return model(ids, schedule=sequential(model.method.slots)).logits


def test_one_token_at_a_time_equals_the_exact_forward(family, kind):
    model, ids = tiny_model(family, **kind), tiny_ids(length=6)
    session = Session(model, *ids.shape)
    hidden = torch.stack([session.step(column) for column in ids.unbind(1)], dim=1)
    torch.testing.assert_close(model.decoder.head(hidden), full_logits(model, ids), atol=1e-11, rtol=0)


def test_any_cut_of_the_prompt_gives_the_same_states(family, kind):
    model, ids = tiny_model(family, **kind), tiny_ids(length=8)
    expected = full_logits(model, ids)
    for cut in (1, 3, 7):
        session = Session(model, *ids.shape)
        hidden = torch.cat([session.extend(ids[:, :cut]), session.extend(ids[:, cut:])], dim=1)
        torch.testing.assert_close(model.decoder.head(hidden), expected, atol=1e-11, rtol=0)


def test_a_ragged_batch_generates_what_each_prompt_generates_alone(family, kind):
    model = tiny_model(family, **kind)
    prompts = [tiny_ids(1, n, seed=n)[0].tolist() for n in (3, 1, 6)]
    together = generate(model, prompts, 5)
    assert together == [generate(model, [prompt], 5)[0] for prompt in prompts]
    for prompt, found in zip(prompts, together, strict=True):
        ids = list(prompt)
        for token in found:
            assert token == full_logits(model, torch.tensor([ids]))[0, -1].argmax()
            ids.append(token)


def test_generation_ends_at_a_stop_id_and_keeps_it():
    model = tiny_model(method="latent", num_thoughts=1)
    free = generate(model, [[1, 2, 3]], 8)[0]
    stopped = generate(model, [[1, 2, 3]], 8, stop_ids=[free[3]])[0]
    assert stopped == free[: free.index(free[3]) + 1]


def test_sampling_depends_on_the_seed_and_the_row_alone():
    model = tiny_model()
    warm = Sampling(temperature=1.0, seed=5)
    first = generate(model, [[1, 2], [3, 4, 5]], 12, warm)
    torch.manual_seed(1)
    assert first == generate(model, [[1, 2], [3, 4, 5]], 12, warm)
    assert first[0] == generate(model, [[1, 2]], 12, warm)[0]
    second = generate(model, [[3, 4, 5]], 12, warm, streams=warm.streams(2)[1:])
    assert first[1] == second[0]  # its neighbour was shorter, and spoke while it was read
    assert first != generate(model, [[1, 2], [3, 4, 5]], 12, Sampling(temperature=1.0, seed=6))


def test_samples_follow_the_distribution_cut_by_top_k_and_top_p():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, -1)
    streams = [stream(0, row) for row in range(4000)]

    def frequencies(**options):
        drawn = choose(logits, Sampling(temperature=1.0, **options), uniform(streams))
        return torch.bincount(drawn, minlength=4) / 4000

    p = logits[0].softmax(0)
    torch.testing.assert_close(frequencies(), p, atol=0.03, rtol=0)
    torch.testing.assert_close(frequencies(top_k=2)[:2], p[:2] / p[:2].sum(), atol=0.03, rtol=0)
    assert frequencies(top_k=2)[2:].sum() == 0
    assert (
        frequencies(top_p=0.7)[2:].sum() == 0 and frequencies(top_p=0.7)[1] > 0.1
    )  # 0.64 + 0.24 crosses 0.7


def test_exact_loss_equals_the_sequential_solver_and_differs_from_jacobi():
    model = tiny_model(method="latent", num_thoughts=1, refinements=1)
    batch = tiny_ids(3, 9)
    exact = validation_loss(model, [batch], exact=True)
    logits = full_logits(model, batch[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
    assert abs(exact - expected) < 1e-11
    assert abs(exact - validation_loss(model, [batch])) > 1e-9


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        generate(tiny_model(), [[1], []], 3)
