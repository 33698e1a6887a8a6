"""Checkpoint folders as they are read: what is found, what is refused."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentpt.run import checkpoints
from latentpt.run.checkpoints import MARK, META, CheckpointError
from tests.folders import write_checkpoint

FILE = "weights-00000-of-00001.safetensors"
WEIGHTS = {"weight": torch.ones(2, 3)}


def damaged(path):
    """The one sentence in which loading the weights of a checkpoint is refused."""
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_weights(path, torch.nn.Linear(3, 2, bias=False))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def reseal(path, name):
    """Write the mark anew, as if the file had been written as it is now."""
    mark = json.loads((path / MARK).read_text())
    mark[name] = checkpoints.file_record(path / name).model_dump()
    (path / MARK).write_text(json.dumps(mark))


def test_a_file_cut_short_or_missing_is_named(tmp_path):
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    file = path / FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert re.search(rf"{FILE} is damaged: it has \d+ bytes instead of \d+$", damaged(path))
    file.unlink()
    assert "is damaged" in damaged(path) and FILE in damaged(path)


@pytest.mark.parametrize("name", [FILE, META])
def test_one_flipped_bit_is_found(name, tmp_path):
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    assert damaged(path) == f"{path / name} is damaged: its content is not what was written"


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([FILE, META, MARK]),
    at=st.floats(0, 1),
    junk=st.binary(min_size=1, max_size=9),
    sealed=st.booleans(),
)
def test_no_damage_gives_a_traceback(name, at, junk, sealed, tmp_path_factory):
    """Also where whoever damaged a file has written the mark anew."""
    path = write_checkpoint(tmp_path_factory.mktemp("run"), 1, WEIGHTS)
    content = (path / name).read_bytes()
    cut = round(at * len(content))
    (path / name).write_bytes(content[:cut] + junk + content[cut + len(junk) :])
    if sealed and name != MARK:
        reseal(path, name)
    try:
        checkpoints.load_weights(path, torch.nn.Linear(3, 2, bias=False))
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "mark, message",
    [
        ("{", "COMMIT is damaged"),
        ("[]", "COMMIT is damaged"),
        ('{"meta.json": 3}', "COMMIT is damaged: meta.json"),
        ("{}", "COMMIT is damaged: it does not name meta.json"),
        ('{"../x": {"bytes": 1, "sha256": ""}}', "'../x' is not a file of its folder"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(mark, message, tmp_path):
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    (path / MARK).write_text(mark)
    assert message in damaged(path)


def test_a_tensor_of_another_shape_or_name_is_refused_although_a_copy_would_repeat_it(tmp_path):
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    for tensors, message in (
        ({"weight": torch.ones(1, 3)}, r"tensor weight of its weights files is (1, 3), not (2, 3)"),
        ({"other": torch.ones(2, 3)}, "its weights files hold no tensor weight"),
    ):
        save_file(tensors, path / FILE)
        reseal(path, FILE)
        assert message in damaged(path)


def test_two_checkpoints_are_the_same_where_all_their_files_are(tmp_path):
    one, same = (write_checkpoint(tmp_path / name, 1, WEIGHTS) for name in "ab")
    other = write_checkpoint(tmp_path / "c", 1, {"weight": torch.zeros(2, 3)})
    assert checkpoints.identity(one) == checkpoints.identity(same) != checkpoints.identity(other)


def test_only_names_of_our_own_are_checkpoints(tmp_path):
    ours = write_checkpoint(tmp_path, 8, WEIGHTS)
    beyond = write_checkpoint(tmp_path, 123_456_789, WEIGHTS)
    for name in ("step-00000008-backup", "step-best", "step-9", "step-00000009.tmp"):
        shutil.copytree(ours, tmp_path / name)
    assert checkpoints.committed(tmp_path) == [ours, beyond]
    assert checkpoints.find(tmp_path) == beyond


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
