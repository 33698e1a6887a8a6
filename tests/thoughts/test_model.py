"""What a fresh model is made of."""

import math

import pytest
import torch

from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.registry import METHODS
from tests.conftest import thinking


def fresh(family="pythia", seed=0, **thoughts):
    size = {"vocab_size": 500, "hidden_size": 64, "num_layers": 2, "num_heads": 4}
    model = LanguageModel(ModelConfig(family=family, **size), ThoughtsConfig(**thoughts))
    model.initialize(seed)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_every_method_is_a_function_of_the_seed(method):
    thoughts = thinking(method)
    torch.manual_seed(1)
    first = fresh(**thoughts).state_dict()
    torch.manual_seed(2)
    again, other = fresh(**thoughts).state_dict(), fresh(seed=1, **thoughts).state_dict()
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert value.dim() < 2 or not value.any() or not torch.equal(value, other[name]), name


@pytest.mark.parametrize(("family", "depth"), [("pythia", 3), ("llama", 1), ("gpt2", 1)])
def test_weights_are_cut_normal_with_the_papers_spread(family, depth):
    model = fresh(family, method="latent", num_thoughts=2)
    std = math.sqrt(2 / (5 * 64))
    cut = 0.9866  # std of a unit normal cut at 3
    embedding = model.decoder.embedding.weight
    assert embedding.std().item() == pytest.approx(cut * std, rel=0.02) and embedding.abs().max() <= 3 * std
    down = model.decoder.blocks[0].mlp.down.weight
    assert down.std().item() == pytest.approx(cut * std / math.sqrt(2 * 2 * depth), rel=0.02)
    assert model.decoder.norm.weight.eq(1).all()


def test_a_scaled_embedding_has_unit_size_like_a_fed_back_state():
    model = fresh(method="latent", num_thoughts=1)
    tokens = model.method.tokens(model.decoder, torch.arange(400)[None], torch.arange(400))
    assert tokens.embeds.square().mean().sqrt().item() == pytest.approx(1.0, rel=0.03)


def test_the_seed_of_vanilla_and_latent_gives_the_same_embedding():
    vanilla, latent = fresh(), fresh(method="latent", num_thoughts=1)
    assert torch.equal(vanilla.decoder.embedding.weight, latent.decoder.embedding.weight)


def test_learned_positions_refuse_a_sequence_that_is_too_long():
    model = LanguageModel(
        ModelConfig(family="gpt2", vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, max_positions=4),
        ThoughtsConfig(),
    )
    with pytest.raises(ValueError, match=r"5 tokens do not fit model\.max_positions = 4"):
        model(torch.zeros(1, 5, dtype=torch.long))
