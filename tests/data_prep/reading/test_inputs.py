"""Which files are the input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.reading.inputs import find_inputs
from latentpt.data.errors import DataError
from tests.data_prep.folders import lines, texts, tokenize


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path: Path) -> None:
    (tmp_path / "part[1].jsonl").write_bytes(lines(["a"]))
    assert find_inputs([str(tmp_path / "part[1].jsonl")]) == [str(tmp_path / "part[1].jsonl")]


def test_a_file_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert find_inputs(["a.jsonl", "./a.jsonl", "*.jsonl", str(tmp_path)]) == ["a.jsonl"]


def test_hidden_files_and_licences_in_a_folder_are_no_documents_and_what_is_passed_over_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "a.txt",
        ".hidden.txt",
        ".cache/b.txt",
        "LICENSE.txt",
        "sub/README.txt",
        "sub/c.jsonl",
        "d.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    found = find_inputs([str(tmp_path)])
    assert [str(Path(file).relative_to(tmp_path)) for file in found] == ["a.txt", "sub/c.jsonl"]
    assert "passed over 5 files that are no input" in capsys.readouterr().err
    assert find_inputs([str(tmp_path / "LICENSE.txt")])  # named by itself it is meant


def test_splits_of_a_dataset_are_not_mixed(tmp_path: Path, tokenizer: Path, documents: list[str]) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {"train": documents[:20], "test": documents[20:30]}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": part}) for name, part in splits.items()}
    )
    saved.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match="is a dataset of the splits train, test; name one"):
        find_inputs([str(tmp_path / "set")])
    with pytest.raises(DataError, match="is a Hugging Face dataset inside"):
        find_inputs([str(tmp_path)])
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "set/train") == 0
    assert texts(tmp_path / "out") == documents[:20]


def test_an_input_that_vanishes_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Path
) -> None:
    from data_prep.commands import tokenize as command

    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
    find = command.find_inputs

    def then_gone(patterns: list[str]) -> list[str]:
        found = find(patterns)
        (tmp_path / "a.jsonl").unlink()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "find_inputs", then_gone)
        assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl") == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/a.jsonl: is gone; it was there when the work was planned\n"
    )
    assert not (tmp_path / "out").exists()


def test_ndjson_is_json_lines(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.ndjson").write_text(json.dumps({"text": "one"}) + "\n")
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path) == 0
    assert texts(tmp_path / "out") == ["one"]
