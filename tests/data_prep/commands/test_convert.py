"""convert: there and back again, for every format."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.tokens.sinks import ListSink, RawSink, ShardSink
from data_prep.tokens.sources import Layout, TokenFile
from latentpt.data.indexed import Shard, ShardWriter
from latentpt.data.manifest import read_manifest
from tests.data_prep.folders import files, lines, tokenize

SHARED = Path(os.environ.get("LATENTPT_SHARED", Path(__file__).parents[4] / "shared"))
MEGATRON = SHARED / "data/megatron/openwebtext/meg-gpt2-openwebtext_text_document"


def convert(*arguments: str | Path) -> int:
    return main(["convert", *map(str, arguments)])


def documents(path: Path) -> list[list[int]]:
    """Documents of a shard folder in order."""
    infos = read_manifest(path).shards
    return [document.tolist() for info in infos for document in Shard(path / info.name).documents()]


@pytest.fixture
def written() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [[*rng.integers(1, 1000, size=size).tolist(), 0] for size in rng.integers(1, 40, size=120)]


@pytest.fixture
def pair(tmp_path: Path, written: list[list[int]]) -> Path:
    with ShardWriter(tmp_path / "pair", np.uint16) as shard:
        for document in written:
            shard.add_document(document)
    return tmp_path / "pair"


@pytest.mark.parametrize("target", ["arrow", "parquet"])
def test_documents_survive_a_trip_through_lists(
    tmp_path: Path, pair: Path, written: list[list[int]], target: str
) -> None:
    assert (
        convert("--input", pair, "--to", target, "--output", tmp_path / "lists", "--shard-tokens", "500") == 0
    )
    assert convert("--input", tmp_path / "lists", "--output", tmp_path / "back") == 0
    assert documents(tmp_path / "back") == written


def test_the_arrow_folder_is_a_hugging_face_dataset(
    tmp_path: Path, pair: Path, written: list[list[int]]
) -> None:
    datasets = pytest.importorskip("datasets")
    assert convert("--input", pair, "--to", "arrow", "--output", tmp_path / "hf") == 0
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    assert loaded["input_ids"][:] == written
    # and a dataset saved by that library is read
    rows = {"input_ids": [[5, 6, 7], [8]], "extra": ["a", "b"]}
    features = datasets.Features(
        {"input_ids": datasets.Sequence(datasets.Value("uint16")), "extra": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert convert("--input", tmp_path / "saved", "--output", tmp_path / "from_hf") == 0
    assert documents(tmp_path / "from_hf") == rows["input_ids"]


def test_a_raw_bin_is_cut_into_documents_at_the_end_or_start_token(
    tmp_path: Path, pair: Path, written: list[list[int]]
) -> None:
    assert convert("--input", pair, "--to", "raw", "--output", tmp_path / "all.bin") == 0
    flat = [token for document in written for token in document]
    assert (tmp_path / "all.bin").read_bytes() == struct.pack(f"<{len(flat)}H", *flat)
    assert convert("--input", tmp_path / "all.bin", "--eod-id", "0", "--output", tmp_path / "back") == 0
    assert documents(tmp_path / "back") == written
    assert read_manifest(tmp_path / "back").ends_marked
    (tmp_path / "llama2c.bin").write_bytes(struct.pack("<7H", 1, 5, 6, 1, 7, 1, 1))
    assert convert("--input", tmp_path / "llama2c.bin", "--bos-id", "1", "--output", tmp_path / "starts") == 0
    assert documents(tmp_path / "starts") == [[1, 5, 6], [1, 7], [1], [1]]
    assert convert("--input", tmp_path / "llama2c.bin", "--output", tmp_path / "one") == 0
    assert documents(tmp_path / "one") == [[1, 5, 6, 1, 7, 1, 1]]


@pytest.mark.parametrize("span", [3, 8, 1000])
def test_pieces_of_any_size_give_the_same_documents(
    tmp_path: Path, pair: Path, written: list[list[int]], span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.tokens.sources.SPAN", span)
    raw = tmp_path / "raw.bin"
    raw.write_bytes((tmp_path / "pair.bin").read_bytes())
    for file in (
        TokenFile("megatron", (tmp_path / "pair.bin",), tmp_path / "pair.idx"),
        TokenFile("raw", (raw,)),
    ):
        found: list[list[int]] = [[]]
        for ids, ends in file.pieces(Layout(eod_id=0)):
            assert len(ids) <= span or file.kind == "raw"
            found[-1] += ids.tolist()
            if ends:
                found.append([])
        assert found == [*written, []]


def test_parts_of_one_bin_are_joined_as_pythia_keeps_them(
    tmp_path: Path, pair: Path, written: list[list[int]]
) -> None:
    data = (tmp_path / "pair.bin").read_bytes()
    (tmp_path / "pair.bin").unlink()
    for number, at in enumerate(range(0, len(data), 1000)):
        (tmp_path / f"pair-{number:05d}-of-00020.bin").write_bytes(data[at : at + 1000])
    assert (
        convert("--input", tmp_path / "pair.idx", "--output", tmp_path / "out", "--shard-tokens", "700") == 0
    )
    assert documents(tmp_path / "out") == written
    assert len(read_manifest(tmp_path / "out").shards) > 2
    assert main(["verify", str(tmp_path / "out")]) == 0
    (tmp_path / "pair-00001-of-00020.bin").unlink()
    assert convert("--input", tmp_path / "pair.idx", "--output", tmp_path / "out2") == 2
    assert not (tmp_path / "out2").exists()
    assert not (tmp_path / ".out2.partial").exists()


def test_sequences_that_end_anywhere_are_not_expected_to_end_with_the_token(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "pair", np.uint16) as shard:
        shard.add_document([1, 2, 0, 3])
        shard.add_document([4, 5, 6, 0])
    assert convert("--input", tmp_path / "pair", "--eod-id", "0", "--output", tmp_path / "out") == 0
    assert not read_manifest(tmp_path / "out").ends_marked
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_ids_outside_the_vocabulary_or_the_dtype_are_refused(
    tmp_path: Path, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("--input", pair, "--vocab-size", "900", "--output", tmp_path / "out") == 2
    assert "outside the vocabulary of 900" in capsys.readouterr().err
    (tmp_path / "wide.bin").write_bytes(struct.pack("<3i", 1, 70000, 2))
    arguments = ("--input", tmp_path / "wide.bin", "--raw-dtype", "int32", "--output", tmp_path / "out")
    assert convert(*arguments, "--dtype", "uint16") == 2
    assert "70000 does not fit uint16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert convert(*arguments) == 0
    assert documents(tmp_path / "out") == [[1, 70000, 2]]


@pytest.mark.skipif(not MEGATRON.with_suffix(".idx").is_file(), reason="needs the shared Megatron pair")
def test_a_real_megatron_pair_is_rewritten_byte_for_byte_and_its_text_comes_back(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    assert convert("--input", MEGATRON, "--output", tmp_path / "out", "--eod-id", "0") == 0
    name = read_manifest(tmp_path / "out").shards[0].name
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "out" / f"{name}{suffix}").read_bytes() == MEGATRON.with_suffix(
            suffix
        ).read_bytes()
    vocabulary = MEGATRON.parent / "gpt2-tiny-vocab.json", MEGATRON.parent / "gpt2-tiny-merges.txt"
    tokenizer = ByteLevelBPETokenizer(*map(str, vocabulary))
    for document in documents(tmp_path / "out")[:50]:
        end = document[-1]
        text = tokenizer.decode(document[:-1])
        assert [*tokenizer.encode(text).ids, end] == document


def test_the_shards_are_read_by_megatrons_own_reader(
    tmp_path: Path, pair: Path, written: list[list[int]]
) -> None:
    reader = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    dataset = reader.IndexedDataset(str(pair))
    assert [dataset[i].tolist() for i in range(len(dataset))] == written
    assert dataset.document_indices.tolist() == list(range(len(written) + 1))


@pytest.mark.parametrize(("magic", "kind"), [(20240520, "<u2"), (20240801, "<u4")])
def test_the_header_of_llm_c_is_no_document(
    tmp_path: Path, magic: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    header, ids = np.zeros(256, "<i4"), np.array([9, 5, 6, 9, 7], kind)
    header[:3] = magic, 1, len(ids)
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    assert convert("--input", tmp_path / "a.bin", "--bos-id", "9", "--output", tmp_path / "out") == 0
    assert documents(tmp_path / "out") == [[9, 5, 6], [9, 7]]
    (tmp_path / "cut.bin").write_bytes(header.tobytes() + ids.tobytes()[:-4])
    assert convert("--input", tmp_path / "cut.bin", "--output", tmp_path / "none") == 2
    assert "has the header of llm.c with 5 ids" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_shards_made_of_shards_keep_sources_and_bytes_of_text(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["one", "two"], "A") + lines(["three"], "B"))
    assert (
        tokenize(tokenizer, tmp_path / "first", "--input", tmp_path / "a.jsonl", "--shard-tokens", "3") == 0
    )
    assert convert("--input", tmp_path / "first", "--output", tmp_path / "second") == 0
    first, second = read_manifest(tmp_path / "first"), read_manifest(tmp_path / "second")
    assert (second.counts, second.sources, second.tokenizer) == (first.counts, first.sources, first.tokenizer)
    assert second.counts.text_bytes == 11
    part = tmp_path / "first" / f"{first.shards[0].name}.idx"  # of a part the sources are not known
    assert convert("--input", part, "--output", tmp_path / "part") == 0
    assert read_manifest(tmp_path / "part").sources == {}


@pytest.mark.parametrize("target", ["shards", "arrow", "parquet", "raw"])
def test_an_interrupted_conversion_goes_on_and_gives_the_same_bytes(
    tmp_path: Path,
    pair: Path,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("data_prep.tokens.sinks._BATCH_TOKENS", 200)
    monkeypatch.setattr("data_prep.tokens.sinks._MARK_BYTES", 200)
    options = ("--input", pair, "--to", target, "--shard-tokens", "400", "--name", "t")
    assert convert(*options, "--output", tmp_path / "whole") == 0
    pieces = TokenFile.pieces
    read: list[int] = []

    def interrupted(file: TokenFile, layout: Layout) -> Iterator[tuple[np.ndarray, bool]]:
        for number, piece in enumerate(pieces(file, layout)):
            if number == 80:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(TokenFile, "pieces", interrupted)
    assert convert(*options, "--output", tmp_path / "out") == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(TokenFile, "pieces", pieces)
    for sink in (ShardSink, RawSink, ListSink):
        write = sink.write

        def watched(self: object, ids: np.ndarray, ends: bool, write: Any = write) -> None:
            read.append(len(ids))
            write(self, ids, ends)

        monkeypatch.setattr(sink, "write", watched)
    assert convert(*options, "--output", tmp_path / "out") == 0
    assert 0 < len(read) < 120
    assert not (tmp_path / ".out.partial").exists()
    if target == "raw":
        assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    else:
        assert files(tmp_path / "out") == files(tmp_path / "whole")
