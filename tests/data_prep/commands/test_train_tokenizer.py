"""train_tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.commands import train_tokenizer
from latentpt.data.tokenizer import load_tokenizer
from tests.data_prep.folders import lines


def train(folder: Path, output: str, *arguments: str) -> int:
    return main(
        [
            "train_tokenizer",
            "--input",
            str(folder),
            "--vocab-size",
            "300",
            "--output",
            str(folder / output),
            *arguments,
        ]
    )


def test_long_lines_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\n" + "zebra quagga okapi " * 400 + "\n")  # 7,600 bytes in one line
    assert train(tmp_path, "t.model", "--vocab-size", "285") == 0
    tokenizer = load_tokenizer(tmp_path / "t.model")
    assert len(tokenizer.encode("zebra quagga okapi")) < 10


def test_what_was_read_is_not_read_again_and_the_tokenizer_is_the_same(
    tmp_path: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(documents[number * 100 : (number + 1) * 100]))
    options = ("--sample", "20K", "--unit-size", "1K", "--workers", "1")
    assert train(tmp_path, "whole.json", *options) == 0
    collect, done = train_tokenizer._collect, []

    def interrupted(*arguments: object) -> object:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return collect(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_tokenizer, "_collect", interrupted)
    (tmp_path / "whole.json").rename(tmp_path.parent / "whole.tokenizer")
    assert train(tmp_path, "t.json", *options) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    rest: list[int] = []
    monkeypatch.setattr(train_tokenizer, "_collect", lambda *arguments: rest.append(1) or collect(*arguments))
    assert train(tmp_path, "t.json", *options) == 0
    units = 2 * sum(-(-(tmp_path / f"{number}.jsonl").stat().st_size // 1000) for number in range(3))
    assert len(done) + len(rest) == units
    assert (tmp_path / "t.json").read_bytes() == (tmp_path.parent / "whole.tokenizer").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "1.jsonl", "2.jsonl", "t.json"]


def test_an_existing_tokenizer_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("some text " * 100)
    (tmp_path / "t.json").write_text("mine")
    assert train(tmp_path, "t.json") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "t.json").read_text() == "mine"
