"""Checkpoint folders as they are written: what is kept. test_trainer and test_ranks resume from them."""

import shutil
from pathlib import Path

import pytest
import torch

from latentpt.run import checkpoints
from latentpt.training import checkpoint
from tests.folders import write_checkpoint

WEIGHTS = {"weight": torch.ones(2, 3)}


def steps(folder):
    return [int(path.name.removeprefix("step-")) for path in checkpoints.committed(folder)]


def test_only_what_a_killed_save_or_removal_of_ours_left_behind_is_removed(tmp_path):
    whole = write_checkpoint(tmp_path, 1, WEIGHTS)
    unmarked = write_checkpoint(tmp_path, 2, WEIGHTS, committed=False)
    foreign = [tmp_path / "step-best", tmp_path / "step-old.tmp"]
    leftovers = [tmp_path / "step-00000003.tmp", tmp_path / "step-00000001.removed"]
    for folder in (*foreign, *leftovers):
        shutil.copytree(whole, folder)
    assert steps(tmp_path) == [1]
    checkpoint.remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([whole, unmarked, *foreign])


def test_a_checkpoint_that_cannot_be_removed_stays_with_a_warning_and_the_others_go(
    tmp_path, monkeypatch, capsys
):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, WEIGHTS)
    rename = Path.rename

    def busy(path, target):
        if path.name == "step-00000001":
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    checkpoint.prune(tmp_path, 1, None)
    assert steps(tmp_path) == [1, 3]
    assert "step-00000001 cannot be removed and stays" in capsys.readouterr().err


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path):
    elsewhere = write_checkpoint(tmp_path / "elsewhere", 1, WEIGHTS)
    (tmp_path / "step-00000001").symlink_to(elsewhere)
    write_checkpoint(tmp_path, 2, WEIGHTS)
    checkpoint.prune(tmp_path, 1, None)
    assert steps(tmp_path) == [2] and steps(elsewhere.parent) == [1]


def test_a_checkpoint_written_again_replaces_the_old_one(tmp_path):
    write_checkpoint(tmp_path, 1, {"weight": torch.zeros(2, 3)})
    again = write_checkpoint(tmp_path, 1, WEIGHTS)
    model = torch.nn.Linear(3, 2, bias=False)
    checkpoints.load_weights(again, model)
    assert torch.equal(model.weight, WEIGHTS["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    "keep_last, keep_every, kept", [(1, None, [6]), (2, 2, [2, 4, 5, 6]), (3, 4, [4, 5, 6])]
)
def test_the_latest_checkpoints_and_the_permanent_ones_are_kept(keep_last, keep_every, kept, tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path, step, WEIGHTS)
    checkpoint.prune(tmp_path, keep_last, keep_every)
    assert steps(tmp_path) == kept
    assert len(list(tmp_path.iterdir())) == len(kept)
