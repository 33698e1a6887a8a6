"""Norms layer by layer, and what is kept of steps whose gradient was not finite."""

import json

import pytest
import torch
from safetensors.torch import load_file

from latentpt.data.batches import BatchStream, TokenDataset
from latentpt.run import load_model, read_metrics
from latentpt.training import trainer
from latentpt.training.layers import by_layer, layer_of, squares
from latentpt.training.trainer import train
from tests.training.small import CARRIED, tiny_run


def of_kind(config, kind):
    return [line for line in read_metrics(config.folder.metrics) if line["kind"] == kind]


def test_a_parameter_belongs_to_its_block_or_to_what_it_is():
    names = ["decoder.embedding.weight", "decoder.blocks.11.mlp.up.weight", "decoder.norm.weight", "method.gate.weight",
             "language.decoder.blocks.0.attention.qkv.lora.weight", "language.decoder.head.weight"]  # fmt: skip
    assert [layer_of(name) for name in names] == [
        "embedding",
        "blocks.11",
        "norm",
        "method",
        "blocks.0",
        "head",
    ]
    assert by_layer(["blocks.0.a", "b", "blocks.0.c"], [3.0, 1.0, 4.0]) == {"blocks.0": 5.0, "b": 1.0}


def test_squares_are_those_of_the_parts_and_zero_where_there_is_none():
    parts = {"b": torch.tensor([3.0, 4.0], dtype=torch.bfloat16), "a": torch.full((300,), 0.1)}
    found = squares(parts, ["a", "missing", "b"], torch.device("cpu"))
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0, 25.0]))


@pytest.mark.parametrize(
    "stage, precision", [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")]
)
def test_layers_add_up_to_the_norm_of_the_gradient_and_weigh_what_the_checkpoint_does(
    stage, precision, text, tmp_path
):
    monitor = {"layers_every": 1}
    run = {"zero": {"stage": stage}, "training": {"precision": precision, "steps": 3}, **CARRIED}
    config = tiny_run(tmp_path / "run", text, monitor=monitor, **run)
    train(config)
    for line, layers in zip(of_kind(config, "train"), of_kind(config, "layers"), strict=True):
        gradient = {name: norm for name, norm in layers.items() if name.startswith("gradient/")}
        assert [*gradient] == [f"gradient/{name}" for name in
                               ("embedding", "blocks.0", "blocks.1", "blocks.2", "norm", "head", "method")]  # fmt: skip
        whole = sum(norm**2 for norm in gradient.values()) ** 0.5
        assert whole == pytest.approx(line["grad_norm"], rel=1e-5 if precision == "fp32" else 1e-2)
    model, _ = load_model(config.folder.path)
    weights = squares(
        dict(model.named_parameters()), [n for n, _ in model.named_parameters()], torch.device("cpu")
    )
    names = [name for name, _ in model.named_parameters()]
    for layer, norm in by_layer(names, weights.sqrt().tolist()).items():
        assert layers[f"weight/{layer}"] == pytest.approx(norm, rel=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_step_that_is_skipped_leaves_its_samples_losses_and_norms(stage, text, tmp_path, monkeypatch):
    monitor = {"skipped": 2}
    config = tiny_run(
        tmp_path / "run", text, zero={"stage": stage}, monitor=monitor, training={"max_skipped": 9}
    )
    finite, calls = trainer.training_loss, []

    def loss(model, tokens, schedule, *more):
        calls.append(None)
        bad = len(calls) in (7, 9, 13)  # of four micro-batches a step: in steps 2, 3 and 4
        return finite(model, tokens, schedule, *more) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(trainer, "training_loss", loss)
    train(config)
    kept = sorted(path.name for path in config.folder.skipped.iterdir())
    assert kept == ["step-00000002", "step-00000003"]
    told = json.loads((config.folder.skipped / kept[0] / "norms.json").read_text())
    assert (told["step"], told["samples"]) == (2, [8, 16])
    assert told["layers"]["blocks.0"]["gradient"] == "nan" and told["layers"]["blocks.0"]["weight"] > 0
    assert "decoder.blocks.1.mlp.up.weight" in told["not_finite"]
    found = load_file(config.folder.skipped / kept[0] / "rank-00000.safetensors")
    assert torch.isfinite(found["losses"]).tolist() == [True, True, False, True]
    data = TokenDataset(config.data.train, config.data.sequence_length)
    with BatchStream(data, config.seed, 8, 8, start_sample=8) as stream:
        assert torch.equal(found["samples"].long(), next(stream))
