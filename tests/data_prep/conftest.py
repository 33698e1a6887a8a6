"""A small corpus and tokenizers trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from tests.data_prep.folders import lines


@pytest.fixture(scope="session")
def documents() -> list[str]:
    words = [p.name for p in sorted(Path(json.__file__).parent.parent.glob("*.py"))]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, size=rng.integers(1, 60))) + f" ünï {i}" for i in range(300)]


@pytest.fixture(scope="session")
def tokenizers(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.jsonl").write_bytes(lines(documents))
    paths = {kind: folder / f"small.{kind}" for kind in ("json", "model")}
    for path in paths.values():
        arguments = ["--input", str(folder / "text.jsonl"), "--vocab-size", "400", "--output", str(path)]
        assert main(["train_tokenizer", *arguments]) == 0
    return paths


@pytest.fixture(scope="session")
def tokenizer(tokenizers: dict[str, Path]) -> Path:
    return tokenizers["json"]
