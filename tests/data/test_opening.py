"""The data's configuration and what it opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentpt.data.batches import TokenDataset
from latentpt.data.config import DataConfig
from latentpt.data.errors import DataError
from latentpt.data.mixture import Mixture
from latentpt.data.opening import open_training, open_validation
from tests.data.test_batches import make_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    make_folder(tmp_path / "set/books", [401])
    make_folder(tmp_path / "set/code", [801], first=1000)
    return tmp_path / "set"


def config(**values: object) -> DataConfig:
    return DataConfig.model_validate({"sequence_length": 8, **values})


def test_folders_are_one_corpus_and_a_folder_of_folders_too(root: Path) -> None:
    for train in (str(root), [str(root / "books"), str(root / "code")]):
        data = open_training(config(train=train))
        assert isinstance(data, TokenDataset)
        assert data.num_tokens == 1202


def test_weights_and_epochs_make_mixtures(root: Path) -> None:
    def sources(key: str, *values: float) -> list[dict]:
        paths = (root / "books", root / "code")
        return [{"path": str(path), key: value} for path, value in zip(paths, values, strict=True)]

    weighted = open_training(config(train=sources("weight", 0.7, 0.3)))
    assert isinstance(weighted, Mixture)
    assert weighted.counts(1000) == {"books": 700, "code": 300}
    by_epochs = open_training(config(train=sources("epochs", 3, 0.5)))
    assert isinstance(by_epochs, Mixture)
    assert by_epochs.counts(200) == {"books": 150, "code": 50}
    assert by_epochs.epochs(200) == {"books": 3.0, "code": 0.5}


def test_a_source_needs_exactly_one_of_weight_and_epochs(root: Path) -> None:
    for extra in ({}, {"weight": 1, "epochs": 1}):
        with pytest.raises(ValueError, match="needs a weight or epochs"):
            config(train=[{"path": "x", **extra}])
    with pytest.raises(ValueError, match="every source"):
        config(train=[{"path": "x", "weight": 1}, {"path": "y", "epochs": 1}])
    twice = [{"path": str(root / "books"), "weight": 1}] * 2
    with pytest.raises(DataError, match="two sources are named 'books'"):
        open_training(config(train=twice))


def test_validation_has_a_corpus_for_each_source(root: Path) -> None:
    assert list(open_validation(config(validation=str(root)))) == ["books", "code"]
    assert list(open_validation(config(validation=str(root / "books")))) == [""]
    assert list(open_validation(config(validation={"b": str(root / "books")}))) == ["b"]
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        open_validation(config(validation=str(root / "missing")))


def test_the_folder_above_train_and_validation_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        make_folder(tmp_path / name, [401])
    for name in ("train", "validation"):
        with pytest.raises(DataError, match="holds train and validation; name one of them"):
            (open_training if name == "train" else open_validation)(config(**{name: str(tmp_path)}))
    assert open_training(config(train=str(tmp_path / "train"))).num_tokens == 401
