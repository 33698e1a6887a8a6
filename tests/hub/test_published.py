"""Checkpoints of the published code, recognised by their configuration."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentpt.config import ConfigError
from latentpt.hub import from_hf
from latentpt.hub.published import published_thoughts

FOLDER = Path(__file__).parents[1] / "goldens" / "pretraining"
ENTRIES = json.loads((FOLDER / "index.json").read_text())
FLAGS = {"latent": "ours", "ponder": "ponderlm", "loop": "loop", "pause": "pause", "vanilla": "vanilla"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"].split(".")[0])
def test_a_published_configuration_says_by_itself_how_to_think(entry):
    tensors = load_file(FOLDER / entry["file"])
    config = {
        "model_type": entry["arch"],
        **entry["config"],
        "recurrent_model": True,
        "num_latent_thoughts": entry["num_latent_thoughts"],
        "num_jacobi_iterations": entry.get("num_jacobi_iterations", 3),
        "patch_method": FLAGS[entry["method"]],
    }
    if entry["method"] == "latent":
        del config["patch_method"]  # released checkpoints do not have it
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    logits = from_hf(config, parameters)(tensors["input_ids"]).logits
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-4, rtol=0)


def test_a_plain_configuration_says_nothing():
    assert published_thoughts({"model_type": "gpt_neox", "hidden_size": 4}) is None


def test_drawn_refinements_and_mixtures_are_understood():
    config = {"model_type": "llama", "recurrent_model": True, "num_latent_thoughts": 1, "scale_embeds": True}
    drawn = published_thoughts({**config, "random_jacobi_iterations": True, "num_jacobi_iterations": 3})
    assert drawn == {"method": "latent", "num_thoughts": 1, "refinements": (2, 3)}
    mixed = published_thoughts({**config, "interpolation": True, "interpolation_use_topk": True})
    assert (mixed["method"], mixed["top_k"]) == ("latent_mixture", 100)


def test_a_latent_llama_that_is_not_recurrent_is_vanilla():
    assert published_thoughts({"model_type": "llama", "num_latent_thoughts": 1}) == {"method": "vanilla"}


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="patch_method = our is unknown; the nearest is ours"):
        published_thoughts({"model_type": "llama", "patch_method": "our"})
