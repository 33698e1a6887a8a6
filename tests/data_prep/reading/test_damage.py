"""Damaged files: an error, or what is readable of them with a word about the rest."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.reading.inputs import Piece
from data_prep.reading.streams import DamagedError
from data_prep.reading.tables import rows
from latentpt.data.manifest import read_manifest
from tests.data_prep.folders import lines, texts, tokenize

COMPRESS = {
    "zst": zstandard.ZstdCompressor().compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def table_file(path: Path, documents: list[str]) -> Path:
    table = pa.table({"text": documents, "meta": [{"pile_set_name": "A"}] * len(documents)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=90)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_is_read_whole_and_a_truncated_file_is_an_error(
    tmp_path: Path, tokenizer: Path, documents: list[str], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = COMPRESS[suffix](lines(documents[:150])) + COMPRESS[suffix](lines(documents[150:]))  # two frames
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(whole)
    assert tokenize(tokenizer, tmp_path / "whole", "--input", path) == 0
    assert texts(tmp_path / "whole") == documents
    path.write_bytes(whole[:-20])
    assert tokenize(tokenizer, tmp_path / "cut", "--input", path) == 2
    error = capsys.readouterr().err
    assert f"{path}: the .{suffix} stream ends early" in error and "--allow-damaged" in error
    assert not (tmp_path / "cut/manifest.json").exists()
    assert (
        tokenize(tokenizer, tmp_path / "cut", "--input", path, "--allow-damaged") == 0
    )  # goes on from there
    out = capsys.readouterr().out
    assert "1 quarantined (1 damaged file; see quarantine.jsonl)" in out
    found = texts(tmp_path / "cut")
    assert found == documents[: len(found)]


def test_a_window_of_256_mebibytes_is_read(tmp_path: Path, tokenizer: Path, documents: list[str]) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    compressor = zstandard.ZstdCompressor(
        compression_params=parameters
    ).compressobj()  # no size in the header
    data = compressor.compress(lines(documents)) + compressor.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert zstandard.get_frame_parameters(data).window_size == 1 << 28
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl.zst") == 0
    assert texts(tmp_path / "out") == documents


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_one_damaged_table_is_quarantined_and_the_others_are_read(
    tmp_path: Path, tokenizer: Path, documents: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = table_file(tmp_path / f"b.{kind}", documents)
    (tmp_path / f"a.{kind}").write_bytes(good.read_bytes()[:-200])
    options = ("--input", tmp_path / f"*.{kind}")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert f"a.{kind}: the .{kind} file is damaged" in capsys.readouterr().err
    assert tokenize(tokenizer, tmp_path / "out", *options, "--allow-damaged") == 0
    assert texts(tmp_path / "out")[-300:] == documents
    assert read_manifest(tmp_path / "out").quarantined == {"damaged file": 1}
    entry = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert Path(entry["file"]).name == f"a.{kind}"


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_with_any_bytes_changed_are_read_or_refused(
    tmp_path: Path, documents: list[str], kind: str
) -> None:
    """A reader that trusted their offsets would end the process."""
    pristine = table_file(tmp_path / f"good.{kind}", documents).read_bytes()
    path = tmp_path / f"bad.{kind}"
    refused = 0
    for seed in range(300):
        rng, content = random.Random(seed), bytearray(pristine)
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            list(rows(Piece(str(path), 0, len(content)), "text", "meta.pile_set_name"))
        except (DamagedError, ValueError):
            refused += 1
    assert refused > 50


def test_a_wrong_text_field_stops_early_and_says_which_fields_there_are(
    tmp_path: Path, tokenizer: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = b"".join(json.dumps({"content": text}).encode() + b"\n" for text in documents * 100)
    (tmp_path / "a.jsonl").write_bytes(content)
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl") == 2
    error = capsys.readouterr().err
    assert "is a document; most often the record has no 'text'; its keys are 'content'" in error
    assert (
        sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
        < len(content) / 2
    )
    few = tmp_path / "few.jsonl"
    few.write_bytes(content[:500])
    assert tokenize(tokenizer, tmp_path / "few", "--input", few) == 2
    assert "the input holds no document" in capsys.readouterr().err
