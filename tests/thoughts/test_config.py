"""Configurations that would train something else than their name says."""

import pytest
import torch

from latentpt.config import ConfigError, build
from latentpt.thoughts.config import FILLING, ThoughtsConfig
from latentpt.thoughts.registry import METHODS
from tests.conftest import tiny_ids, tiny_model


def test_every_method_needs_a_latent_slot_that_has_no_other_way_to_think():
    assert set(FILLING) == {name for name, method in METHODS.items() if not (method.one_slot or method.carry)}


@pytest.mark.parametrize("method", FILLING)
def test_a_method_that_only_fills_slots_needs_one(method):
    assert method in METHODS
    with pytest.raises(ConfigError) as error:
        build(ThoughtsConfig, {"method": method})
    assert str(error.value) == (
        f"thoughts.method = {method} with thoughts.num_thoughts = 0 would train a plain decoder; "
        "the nearest number that thinks is 1"
    )
    build(ThoughtsConfig, {"method": method, "num_thoughts": 1})


def test_pauses_read_a_row_that_no_token_of_the_vocabulary_has():
    model = tiny_model(method="pause", num_thoughts=2)
    assert model.method.row.weight.shape == (1, 16)
    ids = torch.arange(36)[None]  # every token but the last
    before = model(ids).logits
    with torch.no_grad():
        model.decoder.embedding.weight[36] += 1
    torch.testing.assert_close(model(ids).logits, before)
    model(ids, labels=ids).loss.backward()
    assert model.method.row.weight.grad.abs().sum() > 0


def test_a_named_row_of_the_vocabulary_fills_pauses_as_in_published_checkpoints():
    model = tiny_model(method="pause", num_thoughts=1, pause_token=36)
    assert not list(model.method.parameters())
    own = tiny_model(method="pause", num_thoughts=1)
    with torch.no_grad():
        for one, other in zip(own.decoder.parameters(), model.decoder.parameters(), strict=True):
            one.copy_(other)
        own.method.row.weight.copy_(model.decoder.embedding.weight[36:])
    ids = tiny_ids()
    assert torch.equal(own(ids).logits, model(ids).logits)
    with pytest.raises(
        ValueError, match=r"thoughts.pause_token = 37 is no row of the vocabulary; the nearest is 36"
    ):
        tiny_model(method="pause", num_thoughts=1, pause_token=37)
