"""Shards of units become the output's shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from latentpt.data.indexed import Shard, ShardWriter
from latentpt.data.manifest import read_manifest
from tests.data_prep.folders import files, lines, texts, tokenize


@pytest.fixture
def options(tmp_path: Path, documents: list[str]) -> tuple[str | Path, ...]:
    (tmp_path / "a.jsonl").write_bytes(lines(documents[:150]) + lines(documents[150:], "B"))
    return ("--input", tmp_path / "a.jsonl", "--unit-size", "2K", "--name", "t", "--shard-tokens", "5K")


def test_small_shards_are_merged_up_to_the_size_of_a_shard(
    tmp_path: Path, tokenizer: Path, documents: list[str], options: tuple[str | Path, ...]
) -> None:
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    shards = read_manifest(tmp_path / "out").shards
    total = sum(info.tokens for info in shards)
    assert len(shards) <= 2 * total / 5000 + 1
    assert max(info.tokens for info in shards) <= 5000
    assert texts(tmp_path / "out") == documents
    assert main(["verify", str(tmp_path / "out")]) == 0
    large = [*options[:3], "1G", *options[4:-1], "1G"]
    assert tokenize(tokenizer, tmp_path / "one", *large) == 0
    assert tokenize(tokenizer, tmp_path / "merged", *options[:-1], "1G") == 0
    for suffix in (".bin", ".idx"):  # units make no difference to a shard that holds all
        name = f"t-00000-of-00001{suffix}"
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_interrupted_while_merging_it_finishes_the_same_bytes(
    tmp_path: Path, tokenizer: Path, options: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    options = (*options, "--split-by-source")
    assert tokenize(tokenizer, tmp_path / "whole", *options) == 0
    calls = [0]

    def stop_sometimes(*_: object) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt

    for name in ("replace", "unlink"):
        there = getattr(Path, name)

        def counted(path: Path, *arguments: object, there=there, **more: object) -> object:
            if "shard-0" in str(path):
                stop_sometimes()
            return there(path, *arguments, **more)

        monkeypatch.setattr(Path, name, counted)
    append = ShardWriter.append

    def appended(writer: ShardWriter, shard: Shard) -> None:
        stop_sometimes()
        append(writer, shard)

    monkeypatch.setattr(ShardWriter, "append", appended)
    code = tokenize(tokenizer, tmp_path / "out", *options)
    assert code == (130 if 0 < at <= calls[0] else 0)
    monkeypatch.undo()
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_shard_is_appended_document_by_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpt.data.indexed._ENTRIES", 3)
    rng = np.random.default_rng(0)
    parts = [
        [rng.integers(0, 99, size=size).tolist() for size in sizes] for sizes in ([4, 0, 7, 1, 2], [], [9])
    ]
    for number, part in enumerate(parts):
        with ShardWriter(tmp_path / f"{number}", np.uint16) as writer:
            for document in part:
                writer.add_document(document)
    with ShardWriter(tmp_path / "all", np.uint16) as writer:
        for number in range(len(parts)):
            writer.append(Shard(tmp_path / f"{number}"))
    assert [d.tolist() for d in Shard(tmp_path / "all").documents()] == [d for part in parts for d in part]
