"""States that are carried from position to position go from each row's last real position to its next, past all padding."""

import pytest
import torch

from latentpt.finetuning import Fill, latent_forward, latent_generate
from latentpt.finetuning.rollout import replaced
from latentpt.thoughts.registry import METHODS
from tests.conftest import thinking, tiny_model
from tests.finetuning.test_rollout import LATENT, padded

ROWS = [[3, 5, LATENT, LATENT, 9, 1], [4, LATENT, 6, 2, LATENT], [7, 8, 9]]
BACK = [name for name in METHODS if tiny_model(**thinking(name, 1)).method.looks_back]


def alone(model, row, fill):
    """States [n, d] of one row without padding: the whole prefix again, in one piece, for every latent."""
    method, ids = model.method, torch.tensor([row])
    z, latent = (
        torch.zeros(1, len(row), model.config.hidden_size, dtype=torch.float64),
        ids == fill.latent_token,
    )

    def states(length):
        tokens = method.tokens(model.decoder, ids[:, :length], torch.arange(length))
        tokens = replaced(tokens, latent[:, :length], z[:, :length])
        return model.read(tokens, method.exact_schedule())[-1].hidden[0]

    for place in latent[0].nonzero()[:, 0].tolist():
        last = states(place)[-1:]
        z[0, place] = fill.inputs(model.decoder, method.embed_scale, last, last)[0]
    return states(len(row))


def test_methods_that_look_back_are_known():
    assert {"hybrid", "lrt", "fbt", "t2mlr", "p2n"} <= set(BACK)


@pytest.mark.parametrize("name", BACK)
@torch.no_grad()
def test_carried_states_pass_over_padding(name):
    model, fill = tiny_model(**thinking(name, 1)), Fill("hidden", LATENT)
    left = [0, 2, 1]
    ids, mask = padded(ROWS, left)
    for engine in ("segments", "jacobi"):
        out = latent_forward(model, ids, fill, mask, engine=engine, schedule=model.method.exact_schedule())
        for number, (begin, row) in enumerate(zip(left, ROWS, strict=True)):
            expected = model.decoder.head(alone(model, row, fill))
            torch.testing.assert_close(out.logits[number, begin : begin + len(row)], expected)


@pytest.mark.parametrize("name", BACK)
@torch.no_grad()
def test_a_batch_that_carries_states_generates_what_each_row_generates(name):
    model, fill = tiny_model(**thinking(name, 1)), Fill("hidden", LATENT)
    found = latent_generate(model, ROWS, fill, 4, None)
    assert found == [latent_generate(model, [row], fill, 4, None)[0] for row in ROWS]
    for row, new in zip(ROWS, found, strict=True):
        said = model.decoder.head(alone(model, row + new, fill)).argmax(-1)
        assert new == said[len(row) - 1 : -1].tolist()
