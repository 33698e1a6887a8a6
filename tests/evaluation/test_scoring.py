"""Scores of continuations."""

import pytest
import torch

from latentpt.evaluation.scoring import batches_by_length, score
from latentpt.thoughts.schedule import sequential
from tests.conftest import tiny_ids, tiny_model

KINDS = [{"method": "vanilla"}, {"method": "latent", "num_thoughts": 1}]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["method"])
@pytest.mark.parametrize("forward", ["training", "exact"])
def test_a_batch_of_ragged_pairs_scores_as_each_alone(family, kind, forward):
    model = tiny_model(family, **kind)
    pairs = [([1], [2, 3, 4]), ([5, 6, 7, 8], [9]), (list(range(10)), list(range(7)))]
    schedule = sequential(model.method.slots) if forward == "exact" else None
    for (context, continuation), found in zip(pairs, score(model, pairs, forward), strict=True):
        ids = torch.tensor([[*context, *continuation]])
        logprobs = model(ids[:, :-1], schedule=schedule).logits.log_softmax(-1)[0, len(context) - 1 :]
        chosen = logprobs.gather(-1, ids[0, len(context) :, None])
        assert abs(found.logprob - chosen.sum().item()) < 1e-9
        assert found.greedy == bool((logprobs.argmax(-1) == ids[0, len(context) :]).all())


def test_the_likeliest_continuation_is_called_greedy():
    model, context = tiny_model(), tiny_ids(1, 4)[0].tolist()
    best = model(torch.tensor([context])).logits[0, -1].argmax().item()
    assert score(model, [(context, [best])])[0].greedy
    assert not score(model, [(context, [(best + 1) % 37])])[0].greedy


def test_a_context_that_is_too_long_loses_its_beginning():
    model = tiny_model("gpt2")
    context = tiny_ids(1, 90)[0].tolist()
    assert score(model, [(context, [3, 4])]) == score(model, [(context[-63:], [3, 4])])


def test_batches_take_each_index_once_and_the_longest_first():
    lengths = [3, 9, 1, 9, 4]
    batches = list(batches_by_length(lengths, 2))
    assert batches == [[1, 3], [4, 0], [2]]
