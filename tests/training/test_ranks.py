"""Two ranks against one."""

import shutil
from pathlib import Path

import pytest

from latentpt.run import checkpoints, read_metrics
from latentpt.training import trainer
from latentpt.training.trainer import train
from tests.training.small import (
    CARRIED,
    FEEDBACK,
    THINKING,
    finish,
    losses,
    sparse_targets,
    start_ranks,
    thinking_run,
    tiny_run,
)
from tests.training.test_trainer import plain_losses

WORKER = Path(__file__).with_name("two_ranks.py")
GRADIENTS = Path(__file__).with_name("two_gradients.py")


@pytest.mark.slow
def test_any_number_of_ranks_and_any_zero_stage_give_one_loss_curve_also_across_a_resume(text, tmp_path):
    """And the same norms of every layer's gradient and weights, from the parts of them that ranks have."""
    alone = tiny_run(tmp_path / "alone", text, monitor={"layers_every": 2})
    train(alone)
    train(tiny_run(tmp_path / "handed-over", text, training={"stop_at": 3}))

    finish(start_ranks(2, WORKER, text, tmp_path, "stages"))
    taken_back = tiny_run(tmp_path / "taken-back", text)
    shutil.copytree(tmp_path / "all-stages", taken_back.folder.path)
    shutil.rmtree(checkpoints.find(taken_back.folder.checkpoints))  # step 8; leaves step 6, also of two ranks
    train(taken_back)

    expected = plain_losses(alone)
    for name in ("alone", "handed-over", "all-stages", "taken-back"):
        run = tiny_run(tmp_path / name, text)
        assert losses(run) == pytest.approx(expected, abs=2e-6), name
        assert losses(run, "validation") == pytest.approx(losses(alone, "validation"), abs=2e-6), name
    both = layers(tiny_run(tmp_path / "all-stages", text))
    assert [line["step"] for line in both] == [2, 4, 6, 8]  # of one stage after the other
    for here, there in zip(both, layers(alone), strict=True):
        assert here == pytest.approx(there, rel=1e-3)


@pytest.mark.slow
def test_noise_and_passes_are_the_same_on_any_number_of_ranks(text, tmp_path):
    finish(start_ranks(2, WORKER, text, tmp_path, "carried"))
    run = tiny_run(tmp_path / "all-stages", text, **CARRIED)
    assert losses(run) == pytest.approx(plain_losses(run), abs=2e-6)


@pytest.mark.slow
def test_every_kind_of_thinking_gives_one_loss_curve_under_all_stages_whatever_is_recomputed_or_offloaded(
    text, tmp_path
):
    finish(start_ranks(2, WORKER, text, tmp_path, "matrix"))
    muon = thinking_run(tmp_path / "alone", text, "muon", 0)
    train(muon)
    for name in THINKING:
        run = thinking_run(tmp_path, text, name, 0)
        expected = losses(muon) if name == "muon" else plain_losses(run)
        assert losses(run) == pytest.approx(expected, abs=1e-5), name
    both, alone = (
        thinking_run(tmp_path / folder, text, "jacobi", 1, training={"precision": "bf16"})
        for folder in ("bf16", "bf16-alone")
    )
    train(alone)
    assert losses(both) == pytest.approx(losses(alone), rel=2**-8)


@pytest.mark.slow
def test_two_ranks_hand_over_to_one_and_one_to_four(text, tmp_path):
    run = tiny_run(tmp_path / "run", text)
    finish(start_ranks(2, WORKER, text, run.folder.path, "2,2"))
    train(tiny_run(tmp_path / "run", text, zero={"stage": 1}, training={"stop_at": 4}))
    finish(start_ranks(4, WORKER, text, run.folder.path, "3,8"))
    assert losses(run) == pytest.approx(plain_losses(run), abs=1e-5)


def layers(config):
    """Step and norms by layer of a training's lines."""
    lines = [line for line in read_metrics(config.folder.metrics) if line["kind"] == "layers"]
    return [{key: line[key] for key in line if key == "step" or "/" in key} for line in lines]


def norms(config):
    """Step -> norm of the gradient; Adam hides its size from the losses."""
    return {m["step"]: m["grad_norm"] for m in read_metrics(config.folder.metrics) if m["kind"] == "train"}


@pytest.mark.slow
def test_feedback_and_routers_train_alike_on_any_number_of_ranks_under_every_partition(
    text, tmp_path, monkeypatch
):
    """With targets that lie unevenly: the price of thoughts too is a sum over tokens, over the targets of all ranks."""
    monkeypatch.setattr(trainer, "targets_of", sparse_targets)
    finish(start_ranks(2, WORKER, text, tmp_path, "feedback"))
    for name, thoughts in FEEDBACK.items():
        alone, both = (
            tiny_run(tmp_path / folder, text, model={"num_layers": 3}, thoughts=thoughts)
            for folder in (f"{name}-alone", name)
        )
        train(alone)
        assert losses(both) == pytest.approx(losses(alone), abs=2e-6), name
        assert norms(both) == pytest.approx(norms(alone), rel=1e-4), name
        both, alone = (
            [m for m in read_metrics(run.folder.metrics) if m["kind"] == "validation"]
            for run in (both, alone)
        )
        assert len(both) == 2 and [m.get("thoughts") for m in both] == pytest.approx(
            [m.get("thoughts") for m in alone]
        )


@pytest.mark.slow
def test_the_gradients_of_two_ranks_add_up_to_those_of_the_whole_batch():
    finish(start_ranks(2, GRADIENTS))
