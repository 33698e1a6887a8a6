"""verify and inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.__main__ import main
from data_prep.commands import verify
from data_prep.work.executors import Report
from latentpt.data.manifest import read_manifest
from tests.data_prep.folders import lines, tokenize


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path, documents: list[str]) -> Path:
    (tmp_path / "a.jsonl").write_bytes(lines(documents[:50], "A") + lines(documents[50:60], "B"))
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl") == 0
    return tmp_path / "out"


def edit(path: Path, position: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[position : position + len(value)] = value
    path.write_bytes(content)


def test_a_good_folder_is_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "60 documents" in capsys.readouterr().out


def test_what_opening_does_not_see_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = folder / read_manifest(folder).shards[0].name
    pristine = shard.with_suffix(".bin").read_bytes()
    cases = {
        (0, b"\x05\x01"): "sha256 is not the manifest's",
        (0, b"\xff\xff"): "holds the id 65535, outside the vocabulary of 400",
        (len(pristine) - 2, b"\x07\x00"): "document 59 does not end with the end-of-document token 0",
    }
    for (position, value), message in cases.items():
        shard.with_suffix(".bin").write_bytes(pristine)
        edit(shard.with_suffix(".bin"), position, value)
        assert main(["verify", str(folder)]) == 2
        assert message in capsys.readouterr().err
    shard.with_suffix(".bin").write_bytes(pristine)
    (folder / "tokenizer.json").write_text("{}")
    assert main(["verify", str(folder)]) == 2
    assert "tokenizer.json: is not the tokenizer that made the shards" in capsys.readouterr().err


def test_counts_that_do_not_add_up_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["records_in"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(folder)]) == 2
    assert "61 records were read, but 60 were written or quarantined" in capsys.readouterr().err


def test_inspect_says_what_there_is(
    folder: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), "--documents", "2", "--characters", "20"]) == 0
    printed = capsys.readouterr().out
    counts = read_manifest(folder).counts
    assert f"tokens {counts.tokens:,}" in printed
    assert f"{counts.text_bytes / counts.tokens:.3f}" in printed
    assert f"document 1: {documents[1][:20]!r}" in printed


def test_an_interrupted_verification_goes_on_and_sees_what_changed_meanwhile(
    tmp_path: Path,
    tokenizer: Path,
    documents: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    options = ("--input", tmp_path / "a.jsonl", "--shard-tokens", "1K")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    prefixes = [str(tmp_path / "out" / info.name) for info in read_manifest(tmp_path / "out").shards]
    seen: list[str] = []
    check = verify._check_shard

    def watched(promise: verify._Promise, helpers: int, report: Report) -> dict[str, Any]:
        if len(seen) == 3 and promise.prefix not in seen:
            raise KeyboardInterrupt
        seen.append(promise.prefix)
        return check(promise, helpers, report)

    monkeypatch.setattr(verify, "_check_shard", watched)
    assert main(["verify", str(tmp_path / "out")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    rest: list[str] = []
    monkeypatch.setattr(
        verify,
        "_check_shard",
        lambda promise, *others: rest.append(promise.prefix) or check(promise, *others),
    )
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert seen + rest == prefixes
    assert not (tmp_path / "out/.verify").exists()
    monkeypatch.setattr(verify, "_check_shard", watched)
    seen.clear()
    assert main(["verify", str(tmp_path / "out")]) == 130
    monkeypatch.setattr(verify, "_check_shard", check)
    edit(Path(f"{prefixes[0]}.bin"), 0, b"\x05\x01")
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "sha256 is not the manifest's" in capsys.readouterr().err


def test_shards_are_verified_by_several_processes_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_prep.work.executors.WORTH_A_PROCESS", 1)
    assert main(["convert", "--input", str(folder), "--shard-tokens", "100", "--output", f"{folder}2"]) == 0
    capsys.readouterr()
    printed = []
    for workers in ("1", "2"):
        assert main(["verify", f"{folder}2", "--workers", workers]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].count("good") > 3
