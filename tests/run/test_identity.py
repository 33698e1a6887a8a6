"""Data is named by what it holds."""

import json
import shutil

import numpy as np
import pytest

from latentpt.data.errors import DataError
from latentpt.data.indexed import ShardWriter
from latentpt.run.identity import data_identity


def write_folder(folder, content):
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_the_identity_of_data_is_its_manifests_wherever_they_lie(tmp_path):
    whole = data_identity(write_folder(tmp_path / "a", {"tokens": 1}))
    shutil.move(tmp_path / "a", tmp_path / "b" / "c")
    assert data_identity(tmp_path / "b" / "c") == data_identity(tmp_path / "b") == whole
    write_folder(tmp_path / "b" / "d", {"tokens": 2})
    assert data_identity(tmp_path / "b") != whole
    assert data_identity(write_folder(tmp_path / "e", {"tokens": 2})) != whole


def test_a_pair_without_a_manifest_has_an_identity_too(tmp_path):
    found = set()
    for lengths in ((3, 4), (4, 3), (3, 5)):
        with ShardWriter(tmp_path / "pair", np.uint16) as shard:
            for length in lengths:
                shard.add_document(np.zeros(length, dtype=np.uint16))
        found.add(data_identity(tmp_path / "pair"))
    assert len(found) == 3


def test_data_that_is_not_there_has_none(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        data_identity(tmp_path / "nowhere")
