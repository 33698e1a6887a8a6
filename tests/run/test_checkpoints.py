"""Checkpoint folders as they are read: what is found, what is refused."""

import pytest
import torch

from latentpt.run import checkpoints
from latentpt.run.checkpoints import CheckpointError
from tests.folders import write_checkpoint

WEIGHTS = {"weight": torch.ones(2, 3)}


def test_a_damaged_file_is_named(tmp_path):
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    weights = path / "weights-00000-of-00001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"weights-00000-of-00001.safetensors is damaged: it has \d+ bytes"
    ):
        checkpoints.read_meta(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.read_meta(path)


def test_weights_of_another_model_are_refused_by_the_first_difference(tmp_path):
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"of another model: weight is \(2, 3\) there and \(3, 3\) here"
    ):
        checkpoints.load_weights(path, torch.nn.Linear(3, 3, bias=False))
    with pytest.raises(CheckpointError, match="only this model has a parameter bias"):
        checkpoints.load_weights(path, torch.nn.Linear(3, 2))
    model = torch.nn.Linear(3, 2, bias=False)
    checkpoints.load_weights(path, model)
    assert torch.equal(model.weight, torch.ones(2, 3))


def test_find_names_the_nearest_step(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        checkpoints.find(tmp_path)
    for step in (100, 200):
        write_checkpoint(tmp_path, step, WEIGHTS)
    assert checkpoints.find(tmp_path).name == "step-00000200"
    with pytest.raises(CheckpointError, match="no checkpoint of step 170; the nearest is step 200"):
        checkpoints.find(tmp_path, 170)
