"""The published Coconut code and LT-Tuning's printed equations, reproduced: logits, loss, gradients, generation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentpt.finetuning import Fill, latent_forward, latent_generate, predicted_embedding
from latentpt.hub import from_hf, to_hf

FOLDER = Path(__file__).parents[1] / "goldens" / "finetuning"
ENTRIES = {entry["file"].split(".")[0]: entry for entry in json.loads((FOLDER / "index.json").read_text())}
MODELS = [name for name in ENTRIES if name != "predicted_embedding"]


def load(name):
    entry, tensors = ENTRIES[name], load_file(FOLDER / f"{name}.safetensors")
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    model = from_hf({"model_type": entry["arch"], **entry["config"]}, parameters)
    kind = "hidden" if entry["method"] == "coconut" else "fusion"
    options = {key: entry[key] for key in ("alpha", "top_p", "temperature", "layer") if key in entry}
    return model, tensors, Fill(kind, entry["latent_id"], **options), entry


@pytest.mark.parametrize("engine", ["segments", "jacobi"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients_equal_the_published_code(name, engine):
    model, tensors, fill, _ = load(name)
    mask = tensors["attention_mask"]
    out = latent_forward(
        model, tensors["input_ids"], fill, mask, tensors["position_ids"], tensors["labels"], engine
    )
    real = mask.bool()
    torch.testing.assert_close(out.logits[real], tensors["logits"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss, tensors["loss"].squeeze(), atol=1e-5, rtol=1e-5)
    out.loss.backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    _, gradients = to_hf(model)
    for key, expected in ((k[5:], v) for k, v in tensors.items() if k.startswith("grad.")):
        error = (gradients[key] - expected).norm() / expected.norm()
        assert error < 1e-4, f"{key}: relative error {error:.1e}"


@pytest.mark.parametrize("name", [name for name in MODELS if "coconut" in name])
def test_generated_tokens_equal_the_published_code(name):
    model, tensors, fill, entry = load(name)
    prompts = [tensors[f"prompt.{row}"].tolist() for row in range(2)]
    found = latent_generate(model, prompts, fill, 10, entry["eos_id"])
    assert found == [tensors[f"generated.{row}"].tolist() for row in range(2)]


def test_the_predicted_embedding_equals_the_printed_equation():
    tensors = load_file(FOLDER / "predicted_embedding.safetensors")
    expected = {key: value for key, value in tensors.items() if key.startswith("e_pred")}
    assert len(expected) == 6
    for key, value in expected.items():
        top_p, temperature = map(float, key.removeprefix("e_pred.p").split(".T"))
        found = predicted_embedding(
            tensors["logits"],
            tensors["embedding"],
            top_p,
            temperature,
            ENTRIES["predicted_embedding"]["latent_id"],
        )
        torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-5)
