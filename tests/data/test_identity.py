"""Which data a run is trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from latentpt.data.config import DataConfig
from latentpt.data.errors import DataError
from latentpt.data.identity import check_identity, data_identity
from tests.data.test_batches import make_folder


def identity(train: object) -> dict[str, str]:
    return data_identity(DataConfig.model_validate({"train": train}))


def test_the_identity_is_of_the_data_and_not_of_its_place(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", [100, 50])
    first = identity(str(tmp_path / "a"))
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "a", tmp_path / "moved/a")
    assert identity(str(tmp_path / "moved/a")) == first
    make_folder(tmp_path / "a", [100, 50], sha256="b")
    assert identity(str(tmp_path / "a")) != first  # another tokenizer
    shutil.rmtree(tmp_path / "a")
    make_folder(tmp_path / "a", [50, 100])
    assert identity(str(tmp_path / "a")) != first  # other shards


def test_other_data_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_folder(tmp_path / name, [100])
    a, b, c = ({"path": str(tmp_path / name), "weight": 1} for name in ("a", "b", "c"))
    begun = identity([a, b])
    check_identity(begun, identity([a, b]))
    cases = {
        "the source 'b', which is not named now": [a],
        "without the source 'c'": [a, b, c],
        "in the order a, b": [b, a],
        "the source 'b' is not the one": [a, {**b, "weight": 2}],
    }
    for reason, train in cases.items():
        with pytest.raises(DataError, match=reason):
            check_identity(begun, identity(train))
