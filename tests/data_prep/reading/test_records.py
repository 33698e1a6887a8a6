"""Every input format, every kind of bad record, records of any length."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from data_prep.reading.chunks import unit_chunks
from data_prep.reading.inputs import Piece, plan_units
from data_prep.reading.parsing import parse
from data_prep.reading.records import PieceReader, ReadOptions
from latentpt.data.indexed import Shard
from latentpt.data.manifest import read_manifest
from latentpt.data.tokenizer import load_tokenizer
from tests.data_prep.folders import files, lines, texts, tokenize


def quarantine(folder: Path) -> list[tuple[str, int, str]]:
    entries = map(json.loads, (folder / "quarantine.jsonl").read_text().splitlines())
    return [(Path(entry["file"]).name, entry["line"], entry["kind"]) for entry in entries]


def test_bad_records_are_counted_by_kind_and_kept_with_file_and_line(tmp_path: Path, tokenizer: Path) -> None:
    good = lines(["fine"])
    bad = {
        b'{"text": "open': "broken JSON",
        b'{"title": "no text"}': "missing field",
        b'{"text": 3}': "not a string",
        b'{"text": "\xff\xfe"}': "invalid UTF-8",
        b'{"text": "\\ud800"}': "invalid UTF-8",
        b'{"text": ""}': "empty",
        b"[1, 2]": "missing field",
    }
    content = b"".join(good + record + b"\n\n" for record in bad)  # blank lines are no records
    (tmp_path / "a.jsonl").write_bytes(content)
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl") == 0
    assert texts(tmp_path / "out") == ["fine"] * 7
    assert quarantine(tmp_path / "out") == [
        ("a.jsonl", 3 * i + 2, kind) for i, kind in enumerate(bad.values())
    ]
    raws = [json.loads(line)["raw"] for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [raw.encode("utf-8", "surrogateescape") for raw in raws] == list(bad)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.quarantined == {
        "broken JSON": 1, "empty": 1, "invalid UTF-8": 2, "missing field": 2, "not a string": 1,
    }  # fmt: skip
    assert manifest.records_in == manifest.counts.documents + sum(manifest.quarantined.values()) == 14


def test_too_many_bad_records_stop_the_work(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["x"] * 99) + b"{\n")
    options = ("--input", tmp_path / "a.jsonl", "--max-bad")
    assert tokenize(tokenizer, tmp_path / "out", *options, "0.5%") == 2
    assert "1 of 100 records are bad (1.000%), more than --max-bad 0.500%" in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()
    assert tokenize(tokenizer, tmp_path / "out", *options, "1%") == 0


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_truncated_or_corrupt_archive_gives_what_is_before_the_damage(
    tmp_path: Path, tokenizer: Path, documents: list[str], suffix: str
) -> None:
    compress = zstandard.ZstdCompressor().compress if suffix == "zst" else gzip.compress
    first, second = compress(lines(documents[:100])), compress(lines(documents[100:200]))  # two frames
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(first + second[: len(second) // 2])
    (tmp_path / f"b.jsonl.{suffix}").write_bytes(first + b"garbage, certainly no frame")
    (tmp_path / f"c.jsonl.{suffix}").write_bytes(first + second)
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / f"*.{suffix}", "--allow-damaged") == 0
    found = texts(tmp_path / "out")
    assert found[:100] == documents[:100]
    assert found[-300:] == [*documents[:100], *documents[:200]]
    damaged = quarantine(tmp_path / "out")
    assert [(name, kind) for name, _, kind in damaged] == [
        (f"a.jsonl.{suffix}", "damaged file"),
        (f"b.jsonl.{suffix}", "damaged file"),
    ]
    assert damaged[1][1] == 101
    manifest = read_manifest(tmp_path / "out")
    assert manifest.records_in == len(found) + 2


def test_text_files_are_one_document_or_cut_at_a_separator(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("first\nline\n\nsecond\n\n\n\nthird")
    (tmp_path / "b.txt").write_text("whole")
    assert tokenize(tokenizer, tmp_path / "whole", "--input", tmp_path / "a.txt", tmp_path / "b.txt") == 0
    assert texts(tmp_path / "whole") == ["first\nline\n\nsecond\n\n\n\nthird", "whole"]
    assert tokenize(tokenizer, tmp_path / "cut", "--input", tmp_path, "--separator", r"\n\n") == 0
    assert texts(tmp_path / "cut") == ["first\nline", "second", "third", "whole"]


@pytest.mark.parametrize("read", [1, 2, 3, 1000])
def test_records_do_not_depend_on_how_much_is_read_at_a_time(
    tmp_path: Path, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.reading.streams.READ", read)
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\n\n\nsecond\n\n\n\n\nthird\n".encode())
    options = ReadOptions(separator="\n\n")
    reader = PieceReader(Piece(str(path), 0, path.stat().st_size), options, tmp_path / "spool")
    found = [(record.line, parse(record, "txt", options).text) for record in reader]
    assert found == [(1, "first"), (3, "\nsecond"), (8, "\nthird\n")]


def test_json_files_hold_an_array_or_values_one_after_another(tmp_path: Path, tokenizer: Path) -> None:
    values = [
        {"text": 'a "quoted" [text], {really}'},
        {"text": "b\\"},
        {"meta": {"deep": [[1], {}]}, "text": "c"},
    ]
    (tmp_path / "array.json").write_text(json.dumps([*values[:2], 7, "text", values[2]], indent=2))
    (tmp_path / "lines.json").write_text(
        "\n".join(map(json.dumps, values)) + "\n{broken\n" + json.dumps(values[0])
    )
    (tmp_path / "pretty.json").write_text("\n".join(json.dumps(value, indent=1) for value in values))
    (tmp_path / "open.json").write_text(json.dumps(values)[:-1])
    wanted = [value["text"] for value in values]
    for name, extra, bad in (
        ("array", [], [("missing field", 8), ("missing field", 9)]),
        ("lines", wanted[:1], [("broken JSON", 4)]),
        ("pretty", [], []),
    ):
        out = tmp_path / name
        assert tokenize(tokenizer, out, "--input", tmp_path / f"{name}.json") == 0
        assert texts(out) == wanted + extra
        if bad:
            assert [(kind, line) for _, line, kind in quarantine(out)] == bad
    assert tokenize(tokenizer, tmp_path / "open", "--input", tmp_path / "open.json", "--allow-damaged") == 0
    assert texts(tmp_path / "open") == wanted[:2]
    assert quarantine(tmp_path / "open") == [("open.json", 1, "damaged file")]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_are_read_by_column(tmp_path: Path, tokenizer: Path, documents: list[str], kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = [{"pile_set_name": "A" if i % 2 else "B"} for i in range(300)]
    content: list[str | None] = [*documents]
    content[7] = None
    table = pa.table({"body": content, "meta": meta})
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=90)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
    assert tokenize(tokenizer, tmp_path / "out", "--input", path, "--text-field", "body") == 0
    assert texts(tmp_path / "out") == documents[:7] + documents[8:]
    assert quarantine(tmp_path / "out") == [(f"t.{kind}", 8, "missing field")]
    sources = read_manifest(tmp_path / "out").sources
    assert (sources["A"].documents, sources["B"].documents) == (149, 150)
    assert tokenize(tokenizer, tmp_path / "none", "--input", path) == 2


def test_urls_are_read_where_fsspec_is_installed(
    tmp_path: Path, tokenizer: Path, documents: list[str]
) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/corpus/a.jsonl.zst", zstandard.compress(lines(documents)))
    assert tokenize(tokenizer, tmp_path / "out", "--input", "memory://corpus/*.zst") == 0
    assert texts(tmp_path / "out") == documents


@pytest.mark.parametrize("kind", ["json", "model"])
def test_long_records_are_streamed_and_give_the_same_bytes(
    tmp_path: Path,
    tokenizers: dict[str, Path],
    documents: list[str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = " ".join(documents) + ' \\ "quotes"\n\tand 字 😀 ' + " ".join(reversed(documents))
    records = [
        {"text": "short"},
        {"id": "\\", "text": long, "meta": {"pile_set_name": "L"}},
        {"text": "last"},
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/escaped.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "in/plain.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    (tmp_path / "in/array.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "in/text.txt").write_text(long)
    options = ("--input", tmp_path / "in", "--name", "t")
    monkeypatch.setattr("data_prep.tokens.cutting.PIECE", 3000)
    assert tokenize(tokenizers[kind], tmp_path / "memory", *options) == 0
    assert texts(tmp_path / "memory").count(long) == 4
    monkeypatch.setattr("data_prep.reading.records.LONG_RECORD", 500)
    monkeypatch.setattr("data_prep.reading.streams.READ", 97)
    monkeypatch.setattr("data_prep.reading.long_json._BLOCK", 101)
    monkeypatch.setattr("data_prep.reading.long_json._LONG_STRING", 50)
    assert tokenize(tokenizers[kind], tmp_path / "streamed", *options) == 0
    assert files(tmp_path / "streamed") == files(tmp_path / "memory")


@pytest.mark.parametrize("kind", ["json", "model"])
def test_a_long_text_has_the_ids_it_has_in_one_go(
    tmp_path: Path,
    tokenizers: dict[str, Path],
    documents: list[str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([" ".join(documents)]))
    monkeypatch.setattr("data_prep.tokens.cutting.PIECE", 2000)
    assert tokenize(tokenizers[kind], tmp_path / "out", "--input", tmp_path / "a.jsonl") == 0
    tokens = Shard(tmp_path / "out" / read_manifest(tmp_path / "out").shards[0].name).tokens
    assert tokens[:-1].tolist() == load_tokenizer(tokenizers[kind]).encode(" ".join(documents))


@pytest.mark.parametrize(
    "record", [b'{"text": "%s\xff"}', b'{"text": "%s\\ud800 x"}', b'{"text": "%s\\q"}', b'{"text": "%s']
)
def test_a_long_bad_record_is_bad_too(
    tmp_path: Path, tokenizer: Path, record: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.reading.records.LONG_RECORD", 500)
    monkeypatch.setattr("data_prep.reading.long_json._LONG_STRING", 50)
    (tmp_path / "a.jsonl").write_bytes(lines(["good"]) + record % (b"word " * 300) + b"\n" + lines(["good"]))
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl") == 0
    assert texts(tmp_path / "out") == ["good", "good"]
    assert quarantine(tmp_path / "out")[0][1] == 2


def test_what_a_killed_start_left_of_a_long_record_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.reading.records.LONG_RECORD", 50)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 100}]))
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool/long-000001").write_text("left over")
    piece = Piece(str(tmp_path / "a.json"), 0, (tmp_path / "a.json").stat().st_size)
    (record,) = PieceReader(piece, ReadOptions(), tmp_path / "spool")
    assert isinstance(record.raw, Path)
    assert json.loads(record.raw.read_text()) == {"text": "x" * 100}


def test_ranges_of_a_file_hold_every_line_once(tmp_path: Path) -> None:
    documents = ["x" * (i % 23) + str(i) for i in range(200)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(documents))
    for size in (1, 60, 333, 5000):
        found = []
        for unit in plan_units([str(path)], size):
            for piece in unit.pieces:
                reader = PieceReader(piece, ReadOptions(), tmp_path / "spool")
                found += [parse(record, "jsonl", ReadOptions()).text for record in reader]
        assert found == documents


def test_progress_adds_up_to_the_input_when_a_line_is_longer_than_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    long = json.dumps({"text": "word " * 3000}).encode()
    path.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n' * 40)
    units = plan_units([str(path)], 2000)
    chunks = [c for unit in units for c in unit_chunks(unit, ReadOptions(), tmp_path / "spool")]
    assert len(units) > 5 and sum(len(c.records) for c in chunks) == 42
    assert sum(c.bytes_read for c in chunks) == path.stat().st_size
    assert all(c.bytes_read >= 0 for c in chunks)
