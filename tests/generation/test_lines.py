"""--file: lines come out as they are found, whole, and an interrupted command goes on."""

import json

import pytest
import torch

from latentpt.data.errors import DataError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.generation.lines import TOGETHER, Output, write_text_lines
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Options, Writer
from tests.conftest import tiny_model
from tests.folders import BYTES_VOCAB, write_tokenizer

OPTIONS = Options(4, Sampling(temperature=1.0, seed=3))
RECORDS = [{"prompt": "abcdefghij"[: 1 + 7 * n % 10], "number": n} for n in range(11)]


@pytest.fixture
def writer(tmp_path):
    model = tiny_model(dtype=torch.float32, size={"vocab_size": BYTES_VOCAB})
    return Writer(model, load_tokenizer(write_tokenizer(tmp_path / "data")))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    return path


class Killed(BaseException):
    """What ends a process."""


def killed_after(writer, monkeypatch, batches):
    """The writer dies in its next batch after so many."""
    whole, asked = writer.continuations, []

    def continuations(ids, *arguments, **named):
        asked.append(ids)
        if len(asked) > batches:
            raise Killed
        return whole(ids, *arguments, **named)

    monkeypatch.setattr(writer, "continuations", continuations)
    return asked


def test_an_interrupted_file_goes_on_behind_its_last_line_and_is_there_whole_or_not_at_all(
    writer, file, tmp_path, monkeypatch
):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "new" / "out.jsonl"
    write_text_lines(writer, file, str(whole), OPTIONS, 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(writer, patch, 6)
        write_text_lines(writer, file, str(out), OPTIONS, 1)
    partial = out.with_name("out.jsonl.partial")
    assert not out.exists() and partial.exists()
    kept = partial.read_text().splitlines()
    assert kept[1:] == whole.read_text().splitlines()[: len(kept) - 1] and len(kept) > TOGETHER
    with partial.open("a") as half:
        half.write('{"prompt": "abc", "te')  # and half a line
    asked = killed_after(writer, monkeypatch, 99)
    write_text_lines(writer, file, str(out), OPTIONS, 1)
    assert len(asked) == len(RECORDS) - (len(kept) - 1)
    assert out.read_text() == whole.read_text() and not partial.exists()
    assert [json.loads(line)["number"] for line in out.read_text().splitlines()] == list(range(11))


def test_lines_are_printed_before_later_ones_are_found(writer, file, monkeypatch, capsys):
    killed_after(writer, monkeypatch, TOGETHER + 1)
    with pytest.raises(Killed):
        write_text_lines(writer, file, None, OPTIONS, 2)
    assert [json.loads(line)["number"] for line in capsys.readouterr().out.splitlines()][:8] == list(range(8))


def test_lines_begun_with_other_options_are_not_gone_on_with(writer, file, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(writer, patch, 5)
        write_text_lines(writer, file, str(out), OPTIONS, 1)
    kept = (tmp_path / "out.jsonl.partial").read_text()
    with pytest.raises(
        DataError, match=r"out\.jsonl\.partial: was begun with other prompts, options or weights"
    ):
        write_text_lines(writer, file, str(out), OPTIONS._replace(max_new_tokens=5), 1)
    with torch.no_grad():
        next(writer.model.parameters()).add_(1)
    with pytest.raises(DataError, match="was begun with other"):
        write_text_lines(writer, file, str(out), OPTIONS, 1)
    assert (tmp_path / "out.jsonl.partial").read_text() == kept


def test_two_processes_do_not_write_one_file(tmp_path):
    with Output(tmp_path / "out", "x") as first:
        first.add("1")
        with pytest.raises(DataError, match="another process is writing it"), Output(tmp_path / "out", "x"):
            pass
    assert (tmp_path / "out").read_text() == "1\n"
