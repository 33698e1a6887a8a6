"""Two ranks against one."""

import shutil
from pathlib import Path

import pytest
from runs import finish, losses, start_ranks, tiny_run
from test_trainer import plain_losses

from latentpt.training.trainer import train

WORKER = Path(__file__).with_name("two_ranks.py")


@pytest.mark.slow
def test_any_number_of_ranks_and_any_zero_stage_give_one_loss_curve_also_across_a_resume(text, tmp_path):
    alone = tiny_run(tmp_path / "alone", text)
    train(alone)
    handed_over = tiny_run(tmp_path / "handed-over", text)
    train(tiny_run(tmp_path / "handed-over", text, training={"stop_at": 3}))

    finish(start_ranks(2, WORKER, text, tmp_path))  # goes on with handed-over, and trains stage0 .. stage3
    taken_back = tiny_run(tmp_path / "stage3", text)
    shutil.copytree(taken_back.folder.path, tmp_path / "taken-back")
    shutil.rmtree(tmp_path / "taken-back" / "checkpoints" / "step-00000008")  # leaves step 4, by two ranks
    train(tiny_run(tmp_path / "taken-back", text))

    expected = plain_losses(alone)
    for name in ("alone", "handed-over", "stage0", "stage1", "stage2", "stage3", "taken-back"):
        run = tiny_run(tmp_path / name, text)
        assert losses(run) == pytest.approx(expected, abs=2e-6), name
        assert losses(run, "validation") == pytest.approx(losses(alone, "validation"), abs=2e-6), name
    assert handed_over.folder.summary.exists()
