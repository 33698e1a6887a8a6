"""Trainings of the methods that carry a state in time: under every partition, stopped and resumed, from a plain decoder."""

import itertools

import pytest
import torch

from latentpt.run import load_model
from latentpt.run.sections import OptimizerConfig
from latentpt.training.engine.optimizers import parameter_groups
from latentpt.training.trainer import build_model, train
from tests.training.small import CARRIED, losses, tiny_run
from tests.training.test_trainer import plain_losses

METHODS = {
    "lrt": {"solver": "strided", "stride": 2, "refinements": 1},
    "fbt": CARRIED["thoughts"],
    "t2mlr": {"refinements": 3, "bptt_passes": 2},
}
MODEL = {"num_layers": 3}


def run_of(path, text, method, **sections):
    thoughts = {"method": method, "num_thoughts": 0, **METHODS[method]}
    return tiny_run(path, text, model=MODEL, thoughts=thoughts, **sections)


def test_one_seed_draws_one_two_and_three_passes_of_fbt(text, tmp_path):
    config = run_of(tmp_path, text, "fbt")
    model = build_model(config)
    drawn = [len(model.training_schedule(config.seed, step).sweeps) for step in range(config.steps)]
    assert set(drawn) == {1, 2, 3}
    # a step that leaves the fusion unused, after one that used it
    assert any(b == 1 < a for a, b in itertools.pairwise(drawn))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_under_every_partition_is_the_plain_one(method, stage, text, tmp_path):
    config = run_of(tmp_path / "run", text, method, zero={"stage": stage})
    train(run_of(tmp_path / "run", text, method, zero={"stage": stage}, training={"stop_at": 3}))
    train(config)
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)
    assert len(losses(config, "validation")) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_in_bf16_is_the_uninterrupted_one(method, text, tmp_path):
    def run(name, **training):
        sections = {
            "zero": {"stage": 2},
            "training": {"precision": "bf16", "checkpoint_activations": True, **training},
        }
        return run_of(tmp_path / name, text, method, **sections)

    train(run("whole"))
    train(run("parts", stop_at=3))
    train(run("parts"))
    assert losses(run("parts")) == losses(run("whole"))
    state = load_model(tmp_path / "parts")[0].state_dict()
    torch.testing.assert_close(state, load_model(tmp_path / "whole")[0].state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_plain_decoder_goes_on_with_a_carried_state_and_parameters_of_the_seed(method, text, tmp_path):
    plain = tiny_run(tmp_path / "plain", text, model=MODEL, thoughts={"method": "vanilla", "num_thoughts": 0})
    train(plain)
    start = {"start_from": str(tmp_path / "plain"), "stop_at": 1}
    late = run_of(tmp_path / "late", text, method, training=start, optimizer={"lr": 1e-12})
    train(late)
    before, _ = load_model(tmp_path / "plain")
    after, _ = load_model(tmp_path / "late")
    torch.testing.assert_close(after.decoder.state_dict(), before.decoder.state_dict(), atol=1e-10, rtol=0)
    fresh = build_model(late).method.state_dict()
    torch.testing.assert_close(after.method.state_dict(), fresh, atol=1e-10, rtol=0)


def test_a_method_with_more_parameters_is_given_no_more_tokens(text, tmp_path):
    """A budget in tokens per parameter gave the published LRT some 15 % more of them than its baseline."""
    settings = {"steps": None, "tokens": 960}
    plain = {"method": "vanilla", "num_thoughts": 0}
    runs = [run_of(tmp_path, text, method, training=settings) for method in METHODS]
    runs.append(tiny_run(tmp_path, text, model=MODEL, thoughts=plain, training=settings))
    sizes = {sum(p.numel() for p in build_model(run).parameters()) for run in runs}
    assert {run.steps for run in runs} == {10} and len(sizes) == len(runs)


@pytest.mark.parametrize("method", METHODS)
def test_gates_and_rates_do_not_decay(method, text, tmp_path):
    model = build_model(run_of(tmp_path, text, method))
    decayed, rest = parameter_groups(model, OptimizerConfig())
    names = {p: name for name, p in model.method.named_parameters()}
    assert {names[p].rpartition(".")[0].rpartition(".")[2] for p in decayed["params"] if p in names} <= {
        "project",
        "value",
    }
    assert all("gate" in names[p] or "rate" in names[p] for p in rest["params"] if p in names)
    assert any("gate" in names[p] for p in rest["params"] if p in names)
