"""Checkpoint folders as they are written: what is kept. test_trainer and test_ranks resume from them."""

import pytest
import torch

from latentpt.run import checkpoints
from latentpt.training import checkpoint
from tests.folders import write_checkpoint

WEIGHTS = {"weight": torch.ones(2, 3)}


def steps(folder):
    return [int(path.name.removeprefix("step-")) for path in checkpoints.committed(folder)]


def test_a_folder_without_its_mark_is_no_checkpoint_and_is_removed(tmp_path):
    write_checkpoint(tmp_path, 1, WEIGHTS)
    unfinished = write_checkpoint(tmp_path, 2, WEIGHTS, committed=False)
    side = tmp_path / "step-00000003.tmp"
    side.mkdir()
    assert steps(tmp_path) == [1]
    assert checkpoints.find(tmp_path).name == "step-00000001"
    checkpoint.remove_unfinished(tmp_path)
    assert not unfinished.exists() and not side.exists()
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "keep_last, keep_every, kept", [(1, None, [6]), (2, 2, [2, 4, 5, 6]), (3, 4, [4, 5, 6])]
)
def test_the_latest_checkpoints_and_the_permanent_ones_are_kept(keep_last, keep_every, kept, tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path, step, WEIGHTS)
    checkpoint.prune(tmp_path, keep_last, keep_every)
    assert steps(tmp_path) == kept
    assert len(list(tmp_path.iterdir())) == len(kept)
