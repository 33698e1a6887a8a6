"""The published implementation's numbers, reproduced: logits, loss and every gradient."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentpt.hub import from_hf, to_hf
from latentpt.thoughts.registry import METHODS
from latentpt.thoughts.schedule import sequential

FOLDER = Path(__file__).parents[1] / "goldens" / "pretraining"
ENTRIES = json.loads((FOLDER / "index.json").read_text())


def load(entry, **thoughts):
    tensors = load_file(FOLDER / entry["file"])
    config = {"model_type": entry["arch"], **entry["config"]}
    method = entry["method"]
    if entry["arch"] == "gpt_neox" and method == "ponder":
        method = "ponder_hidden"  # what the published GPT-NeoX file computes under that name
    given = {"method": method, "num_thoughts": entry["num_latent_thoughts"]}
    if method == "latent":
        given["refinements"] = entry["num_jacobi_iterations"]
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    return from_hf(config, parameters, {**given, **thoughts}), tensors


def written(entry):
    method = (
        "ponder_hidden" if (entry["arch"], entry["method"]) == ("gpt_neox", "ponder") else entry["method"]
    )
    return method in METHODS


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if written(e)], ids=lambda entry: entry["file"].split(".")[0]
)
def test_logits_loss_and_gradients_equal_the_published_code(entry):
    model, tensors = load(entry)
    out = model(tensors["input_ids"], labels=tensors["input_ids"])
    torch.testing.assert_close(out.logits, tensors["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss, tensors["loss"].squeeze(), atol=1e-5, rtol=1e-5)
    out.loss.backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    _, gradients = to_hf(model)
    for name, expected in ((k[5:], v) for k, v in tensors.items() if k.startswith("grad.")):
        error = (gradients[name] - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    "entry",
    [e for e in ENTRIES if e["arch"] == "llama" and e["method"] == "latent"],
    ids=lambda entry: entry["file"].split(".")[0],
)
def test_the_sequential_solver_equals_the_published_cached_decoding(entry):
    model, tensors = load(entry)
    logits = model(tensors["input_ids"], schedule=sequential(model.method.slots)).logits
    torch.testing.assert_close(logits, tensors["sequential_logits"], atol=1e-4, rtol=0)
