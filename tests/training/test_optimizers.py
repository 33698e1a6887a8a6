"""Muon beside AdamW, and averages of weights: against torch's own, under every ZeRO stage, over a resume."""

import pytest
import torch
from torch import nn

from latentpt.config import ConfigError, build
from latentpt.run import checkpoints, load_model, read_metrics
from latentpt.run.checkpoints import shapes_of
from latentpt.run.sections import AverageConfig, OptimizerConfig
from latentpt.training.engine import start_processes
from latentpt.training.engine.layout import Layout
from latentpt.training.engine.optimizers import Optimizer, orthogonalize, parameter_groups
from latentpt.training.trainer import build_model, train
from tests.training.small import losses, tiny_run
from tests.training.test_trainer import final_state

MUON = {"kind": "muon", "lr": 1e-2, "weight_decay": 0.3}


def undivided(model, settings, dtype):
    """The optimizer of a model without DeepSpeed."""
    *_, device = start_processes()
    optimizer = Optimizer(parameter_groups(model, settings), settings, dtype, fused=False)
    names = dict(model.named_parameters())
    muon = {p for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    layout = Layout(None, 0, names, shapes_of(names), [])
    optimizer.divide(model, layout, {name for name, p in names.items() if p in muon}, device)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * group["scale"]
    return optimizer


def move(parameters, optimizer, step):
    """One step on gradients that follow from the step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("adjust, matrix_lr", [("match_rms_adamw", None), ("original", 3e-2)])
def test_a_matrix_moves_as_under_torchs_muon(adjust, matrix_lr, tmp_path):
    config = tiny_run(
        tmp_path, tmp_path, model={"family": "pythia", "num_layers": 1, "num_heads": 1, "hidden_size": 16}
    )
    settings = OptimizerConfig(**MUON, adjust=adjust, matrix_lr=matrix_lr)
    model = build_model(config)
    name, ours = "decoder.blocks.0.mlp.up.weight", model.decoder.blocks[0].mlp.up.weight
    theirs = nn.Parameter(ours.detach().clone())
    muon = torch.optim.Muon(
        [theirs],
        lr=matrix_lr or settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn=adjust,
    )
    optimizer = undivided(model, settings, torch.bfloat16)
    for step in range(3):
        move(model.parameters(), optimizer, step)
        theirs.grad = ours.grad.clone()
        muon.step()
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)
    assert optimizer.moments(name) == ("momentum",)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(tmp_path):
    model = build_model(tiny_run(tmp_path, tmp_path, thoughts={"method": "fbt", "num_thoughts": 0}))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(**MUON))
    (muon,) = [group for group in groups if group["muon"]]
    assert {names[p].split(".", 3)[3] for p in muon["params"]} == {
        "attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight",
    }  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert {tuple(sorted(group)) for group in groups} == {("muon", "params", "scale", "weight_decay")}


def test_matrices_that_lie_in_one_weight_are_orthogonalised_one_by_one(tmp_path):
    model = build_model(tiny_run(tmp_path, tmp_path))  # llama: queries, keys and values; gate and up
    block = model.decoder.blocks[0]
    settings = OptimizerConfig(kind="muon", lr=1.0, momentum=0.0, weight_decay=0.0, adjust="original")
    before = block.attention.qkv.weight.detach().clone()
    move(model.parameters(), undivided(model, settings, torch.float32), 0)
    for third in (before - block.attention.qkv.weight).split(18):
        assert torch.linalg.svdvals(third).max() < 1.3
        assert (
            third.norm() > 0.75 * 18**0.5
        )  # a third of one orthogonal matrix [54, 18] would have the norm sqrt(6)
    assert block.mlp.up.stacked == (72, 72)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_loses_their_values(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalize(matrix, torch.float64) @ v.T
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-12
    assert inside.diagonal().min() > 0.65 and inside.diagonal().max() < 1.25


@pytest.mark.parametrize("stage, precision", [(0, "fp32"), (1, "bf16"), (3, "fp32")])
def test_muon_and_an_average_resume_bit_by_bit(stage, precision, text, tmp_path):
    def run(name, **training):
        return tiny_run(
            tmp_path / name,
            text,
            zero={"stage": stage},
            optimizer=MUON,
            average={"begin": 2, "horizon": 2},
            training={"precision": precision, "steps": 5, "batch_samples": 2, **training},
        )

    train(run("whole"))
    for stop_at in (2, 4, None):  # before the average begins, and after
        train(run("parts", stop_at=stop_at))
    ours, theirs = final_state(run("parts")), final_state(run("whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for kind in ("train", "validation"):
        assert losses(run("parts"), kind) == losses(run("whole"), kind)


@pytest.mark.parametrize("horizon, weights", [(None, [1 / 4] * 4), (2, [1 / 8, 1 / 8, 1 / 4, 1 / 2])])
def test_an_average_counts_the_weights_since_its_beginning(horizon, weights):
    config = AverageConfig(begin=0.6, horizon=horizon)
    counted = []
    for step in range(10):
        share = config.share(step, 10)
        counted = [weight * (1 - share) for weight in counted] + [share]
    assert counted == pytest.approx([0.0] * 6 + weights)


@pytest.mark.parametrize("stage", [1, 3])
def test_the_average_is_validated_saved_and_loaded_and_the_training_goes_on_from_its_own_weights(
    stage, text, tmp_path
):
    sections = {
        "zero": {"stage": stage},
        "training": {"steps": 4, "batch_samples": 2},
        "checkpoint": {"every": 1, "keep_last": 9},
        "validation": {"every": 1},
    }
    plain = tiny_run(tmp_path / "plain", text, **sections)
    averaged = tiny_run(tmp_path / "averaged", text, average={"begin": 1}, **sections)
    train(plain)
    train(averaged)
    assert losses(averaged) == losses(plain)
    validated = {
        line["step"]: line.get("averaged", False)
        for line in read_metrics(averaged.folder.metrics)
        if line["kind"] == "validation"
    }
    assert validated == {step: step > 1 for step in range(1, 5)}
    late = [dict(load_model(plain.folder.path, step=step)[0].named_parameters()) for step in (2, 3, 4)]
    model, _ = load_model(averaged.folder.path)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, sum(weights[name] for weights in late) / 3, atol=1e-6, rtol=0)
    assert losses(averaged, "validation")[2] == losses(plain, "validation")[2]  # of one step
    assert losses(averaged, "validation")[4] != losses(plain, "validation")[4]
    assert checkpoints.read_meta(checkpoints.find(averaged.folder.checkpoints)).averaged


def test_another_optimizer_and_options_it_has_not_are_refused(text, tmp_path):
    train(tiny_run(tmp_path / "run", text, training={"stop_at": 1}))
    with pytest.raises(ConfigError, match=r"optimizer.kind is adamw there and muon here"):
        train(tiny_run(tmp_path / "run", text, optimizer=MUON))
    with pytest.raises(ConfigError, match=r"optimizer.matrix_lr belongs to optimizer.kind = muon"):
        build(OptimizerConfig, {"matrix_lr": 0.02})
    with pytest.raises(ConfigError, match=r"average.begin = 9 is not reached in a training of 8 steps"):
        tiny_run(tmp_path / "late", text, average={"begin": 9})
