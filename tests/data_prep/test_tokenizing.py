"""tokenize: whole, in order, whatever the number of workers and starts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_prep.__main__ import main
from latentpt.data.batches import TokenDataset
from latentpt.data.indexed import Shard
from latentpt.data.manifest import read_manifest
from latentpt.data.tokenizer import load_tokenizer


def lines(documents: list[str], source: str = "A") -> bytes:
    return b"".join(
        json.dumps({"text": t, "meta": {"pile_set_name": source}}).encode() + b"\n" for t in documents
    )


def texts(folder: Path) -> list[str]:
    """Documents of a shard folder as text, end-of-document token cut off."""
    tokenizer = load_tokenizer(folder)
    found = []
    for info in read_manifest(folder).shards:
        for document in Shard(folder / info.name).documents():
            assert document[-1] == tokenizer.eod_id
            found.append(tokenizer.decode(document[:-1]))
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = [p.name for p in sorted(Path(json.__file__).parent.parent.glob("*.py"))]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, size=rng.integers(1, 60))) + f" ünï {i}" for i in range(300)]


@pytest.fixture(scope="session", params=["json", "model"])
def tokenizer(
    request: pytest.FixtureRequest, documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.jsonl").write_bytes(lines(documents))
    path = folder / f"small.{request.param}"
    assert (
        main(
            [
                "train_tokenizer",
                "--input",
                str(folder / "text.jsonl"),
                "--vocab-size",
                "400",
                "--output",
                str(path),
            ]
        )
        == 0
    )
    return path


def tokenize(tokenizer: Path, output: Path, *arguments: str | Path) -> int:
    return main(["tokenize", "--tokenizer", str(tokenizer), "--output", str(output), *map(str, arguments)])


def test_documents_come_out_as_they_went_in(tmp_path: Path, tokenizer: Path, documents: list[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents[:100]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(documents[100:200])))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines(documents[200:])))
    assert (
        tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "*.jsonl*", "--shard-tokens", "2K") == 0
    )
    assert texts(tmp_path / "out") == documents
    manifest = read_manifest(tmp_path / "out")
    assert manifest.records_in == manifest.counts.documents == 300
    assert manifest.counts.text_bytes == sum(len(d.encode()) for d in documents)
    assert len(manifest.shards) > 3
    assert max(info.tokens for info in manifest.shards) <= 2000
    assert TokenDataset(tmp_path / "out", 64).num_tokens == manifest.counts.tokens
    assert not (tmp_path / "out" / ".work").exists()


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, tokenizer: Path, documents: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents * 20))
    options = ("--input", tmp_path / "a.jsonl", "--name", "t", "--unit-size", "300K")
    for workers in (1, 3):
        assert tokenize(tokenizer, tmp_path / f"out{workers}", *options, "--workers", str(workers)) == 0
    assert files(tmp_path / "out1") == files(tmp_path / "out3")


def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    cases = {
        ("--input", str(tmp_path / "none*.jsonl")): "matches no input file",
        ("--input", __file__): "is of no known input format",
        ("--input", str(tmp_path / "empty.jsonl")): "empty.jsonl: the input holds no document",
        ("--input", str(tmp_path / "empty.jsonl"), "--eod", "<nope>"): "has no token '<nope>'",
    }
    for arguments, message in cases.items():
        assert tokenize(tokenizer, tmp_path / "out", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not list((tmp_path / "out").glob("*.bin"))
