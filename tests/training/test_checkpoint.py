"""Checkpoint folders: what is kept, what is refused. test_trainer and test_ranks resume from them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentpt.training import checkpoint
from latentpt.training.checkpoint import CheckpointError


def make(folder: Path, step: int, committed: bool = True, shape=(2, 3)) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    save_file({"weight": torch.ones(shape)}, path / "weights-00000-of-00001.safetensors")
    meta = {"progress": {"step": step}, "updates": step, "shapes": {"weight": list(shape)}, "config": {}}
    (path / "meta.json").write_text(json.dumps(meta))
    if committed:
        sizes = {file.name: file.stat().st_size for file in path.iterdir()}
        (path / checkpoint.MARK).write_text(json.dumps(sizes))
    return path


def steps(folder):
    return [int(path.name.removeprefix("step-")) for path in checkpoint.committed(folder)]


def test_a_folder_without_its_mark_is_no_checkpoint_and_is_removed(tmp_path):
    make(tmp_path, 1)
    unfinished = make(tmp_path, 2, committed=False)
    side = tmp_path / "step-00000003.tmp"
    side.mkdir()
    assert steps(tmp_path) == [1]
    assert checkpoint.find(tmp_path).name == "step-00000001"
    checkpoint.remove_unfinished(tmp_path)
    assert not unfinished.exists() and not side.exists()
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "keep_last, keep_every, kept", [(1, None, [6]), (2, 2, [2, 4, 5, 6]), (3, 4, [4, 5, 6])]
)
def test_the_latest_checkpoints_and_the_permanent_ones_are_kept(keep_last, keep_every, kept, tmp_path):
    for step in range(1, 7):
        make(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last, keep_every)
    assert steps(tmp_path) == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_a_damaged_file_is_named(tmp_path):
    path = make(tmp_path, 1)
    weights = path / "weights-00000-of-00001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"weights-00000-of-00001.safetensors is damaged: it has \d+ bytes"
    ):
        checkpoint.read_meta(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.read_meta(path)


def test_weights_of_another_model_are_refused_by_the_first_difference(tmp_path):
    path = make(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"of another model: weight is \(2, 3\) there and \(3, 3\) here"
    ):
        checkpoint.load_weights(path, torch.nn.Linear(3, 3, bias=False))
    with pytest.raises(CheckpointError, match="only this model has a parameter bias"):
        checkpoint.load_weights(path, torch.nn.Linear(3, 2))
    model = torch.nn.Linear(3, 2, bias=False)
    checkpoint.load_weights(path, model)
    assert torch.equal(model.weight, torch.ones(2, 3))


def test_find_names_the_nearest_step(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        checkpoint.find(tmp_path)
    for step in (100, 200):
        make(tmp_path, step)
    assert checkpoint.find(tmp_path).name == "step-00000200"
    with pytest.raises(CheckpointError, match="no checkpoint of step 170; the nearest is step 200"):
        checkpoint.find(tmp_path, 170)
