"""What must not be lost or overwritten: other inputs, foreign files, outputs that cannot be; one sentence each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.tokens.unit_writer import _Route
from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard
from latentpt.data.manifest import read_manifest
from latentpt.data.tokenizer import load_tokenizer
from tests.data_prep.folders import files, lines, texts, tokenize


@pytest.fixture
def inputs(tmp_path: Path, documents: list[str]) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.jsonl").write_bytes(lines(documents[number * 100 : (number + 1) * 100]))
    return tmp_path / "in"


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize("split", [(), ("--held-out", "20%")])
def test_a_finished_output_is_not_taken_for_that_of_other_inputs(
    tmp_path: Path, tokenizer: Path, inputs: Path, capsys: pytest.CaptureFixture[str], split: tuple[str, ...]
) -> None:
    options = ("--input", inputs, *split)
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    before = files(tmp_path / "out")
    content = (inputs / "1.jsonl").read_bytes()
    times = (inputs / "1.jsonl").stat()
    capsys.readouterr()

    (inputs / "3.jsonl").write_bytes(lines(["more"]))
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert f"was made without the input {inputs}/3.jsonl" in sentence(capsys)
    (inputs / "3.jsonl").unlink()

    (inputs / "1.jsonl").rename(tmp_path / "1.jsonl")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert f"was made with the input {inputs}/1.jsonl, which is not among the inputs now" in sentence(capsys)

    (inputs / "1.jsonl").write_bytes(content[: len(content) // 2])
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert f"was made when {inputs}/1.jsonl had {len(content):,} bytes" in sentence(capsys)

    (inputs / "1.jsonl").write_bytes(content)
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert "was last changed at" in sentence(capsys)
    assert tokenize(tokenizer, tmp_path / "out", *options, "--hash-inputs") == 0  # the contents are the same

    (inputs / "1.jsonl").write_bytes(content.replace(b"a", b"b", 1))
    os.utime(inputs / "1.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0  # names, sizes and times are
    capsys.readouterr()
    assert tokenize(tokenizer, tmp_path / "out", *options, "--hash-inputs") == 2
    assert f"was made when {inputs}/1.jsonl had another content" in sentence(capsys)
    assert files(tmp_path / "out") == before


def test_work_survives_an_input_that_was_removed(
    tmp_path: Path,
    tokenizer: Path,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--input", inputs, "--name", "t", "--shard-tokens", "1K")
    assert tokenize(tokenizer, tmp_path / "whole", *options) == 0
    close, closes = _Route.close, []

    def stop_at_fifth(route: _Route) -> None:
        close(route)
        closes.append(1)
        if len(closes) == 5:
            raise DataError("stopped")

    monkeypatch.setattr(_Route, "close", stop_at_fifth)
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    monkeypatch.undo()
    work = files(tmp_path / "out/.work")
    (inputs / "2.jsonl").rename(tmp_path / "2.jsonl")
    capsys.readouterr()
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert f"was made with the input {inputs}/2.jsonl, which is not among the inputs now" in sentence(capsys)
    assert files(tmp_path / "out/.work") == work
    (tmp_path / "2.jsonl").rename(inputs / "2.jsonl")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_foreign_files_are_left_alone(
    tmp_path: Path, tokenizer: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "out-00000-of-00001.bin").write_text("somebody else's")
    before = files(out)
    assert tokenize(tokenizer, out, "--input", inputs) == 2
    assert "holds out-00000-of-00001.bin, which this command has not written" in sentence(capsys)
    for command in ("dedup", "convert"):
        assert main([command, "--input", str(inputs), "--output", str(out)]) == 2
        assert files(out) == before
    capsys.readouterr()


@pytest.mark.parametrize("name", ["a/b", "../a", "..", ".a", ""])
def test_a_name_stays_in_the_output(
    tmp_path: Path, tokenizer: Path, inputs: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code = tokenize(tokenizer, tmp_path / "deep/out", "--input", inputs, "--name", name)
    assert code == (2 if name else 0)  # an empty name is none
    if name:
        assert f"--name {name!r} is no name of a file" in sentence(capsys)
        assert not (tmp_path / "deep").exists()


def test_a_source_stays_in_the_output(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines(["one"], "../../evil") + lines(["two"], "..") + lines(["three"], "/etc")
    )
    assert (
        tokenize(tokenizer, tmp_path / "deep/out", "--input", tmp_path / "a.jsonl", "--split-by-source") == 0
    )
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]
    folders = json.loads((tmp_path / "deep/out/folders.json").read_text())["folders"]
    assert sorted(folders) == ["etc", "evil", "unknown"]


def test_an_output_that_is_a_file_and_one_below_a_file_are_refused_by_every_command(
    tmp_path: Path, tokenizer: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("content")
    for output in (tmp_path / "file", tmp_path / "file/out"):
        common = ["--input", str(inputs / "0.jsonl"), "--output", str(output)]
        for arguments in (
            ["tokenize", "--tokenizer", str(tokenizer), *common],
            ["dedup", *common],
            ["decontaminate", "--evaluation", str(inputs / "1.jsonl"), *common],
            ["convert", "--input", str(inputs), "--output", str(output)],
            ["sample", "--size", "1M", "--output", str(output)],
        ):
            assert main(arguments) == 2
            assert str(tmp_path) in sentence(capsys)
    assert (tmp_path / "file").read_text() == "content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that cannot be written to")
def test_a_read_only_output_is_refused(
    tokenizer: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tokenize(tokenizer, Path("/proc/out"), "--input", inputs) == 2
    assert "/proc" in sentence(capsys)
    assert main(["dedup", "--input", str(inputs), "--output", "/proc/out"]) == 2
    assert "/proc" in sentence(capsys)


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    tmp_path: Path,
    tokenizer: Path,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--input", inputs, "--name", "t")
    assert tokenize(tokenizer, tmp_path / "whole", *options) == 0
    capsys.readouterr()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out/x"))

    monkeypatch.setattr("latentpt.data.indexed.ShardWriter.write", full)
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    assert sentence(capsys) == f"error: {tmp_path}/out/x: No space left on device\n"
    monkeypatch.undo()
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_folder_is_a_tokenizer_too(
    tmp_path: Path, tokenizer: Path, inputs: Path, documents: list[str]
) -> None:
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(tokenizer, tmp_path / "tokenizer/tokenizer.json")
    assert tokenize(tmp_path / "tokenizer", tmp_path / "out", "--input", inputs) == 0
    assert texts(tmp_path / "out") == documents
    assert tokenize(inputs, tmp_path / "none", "--input", inputs) == 2


def test_whoever_reads_only_the_beginning_sees_no_traceback(
    tmp_path: Path, tokenizer: Path, inputs: Path
) -> None:
    assert tokenize(tokenizer, tmp_path / "out", "--input", inputs) == 0
    command = [sys.executable, "-m", "data_prep", "inspect", str(tmp_path / "out"), "--documents", "10000"]
    process = subprocess.Popen(
        [*command, "--characters", "10000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() in (0, 141)


def test_what_became_of_the_records_is_always_said(
    tmp_path: Path, tokenizer: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (inputs / "2.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    assert tokenize(tokenizer, tmp_path / "out", "--input", inputs) == 0
    said = "301 records read, 300 kept, 1 quarantined (1 broken JSON; see quarantine.jsonl)"
    assert said in capsys.readouterr().out
    assert main(["dedup", "--exact-only", "--input", str(inputs), "--output", str(tmp_path / "unique")]) == 0
    said = "301 records read, 300 kept, 0 removed, 1 quarantined (1 broken JSON; see quarantine.jsonl)"
    assert said in capsys.readouterr().out


def test_a_start_token_stands_before_every_document(
    tmp_path: Path, tokenizer: Path, inputs: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tokenize(tokenizer, tmp_path / "out", "--input", inputs, "--bos", "a") == 0
    loaded = load_tokenizer(tokenizer)
    (info,) = read_manifest(tmp_path / "out").shards
    found = [document.tolist() for document in Shard(tmp_path / "out" / info.name).documents()]
    assert found == [[loaded.token_id("a"), *loaded.encode(text), loaded.eod_id] for text in documents]
    capsys.readouterr()
    assert tokenize(tokenizer, tmp_path / "none", "--input", inputs, "--bos", "<nope>") == 2
    assert "has no token '<nope>', which --bos names" in sentence(capsys)
