"""The commands that take a reader from a corpus to an evaluated, published model are given, read from the text, on little data.

They are made smaller by what is appended to them, as README says, and by nothing else.
"""

import importlib
import io
import json
import runpy
import sys

import pytest

from tests.docs.commands import ROOT, read_commands
from tests.folders import shared

# Appended to the commands of a script; the last value of an option counts.
SMALLER = {
    "tokenize": ["--workers", "1"],
    "launch/pretrain.py": [
        "model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=64",
        "data.sequence_length=48", "training.steps=4", "training.batch_samples=4", "training.micro_batch=4",
        "training.precision=fp32", "validation.samples=8", "monitor.tensorboard=false",
    ],
    "launch/generate.py": ["--max-new-tokens", "4", "--device", "cpu"],
    "launch/eval.py": ["--samples", "4", "--device", "cpu", "--limit", "2", "--fewshot", "0"],
    "launch/export.py": [],
    "launch/report.py": [],
    "latentpt/status.py": [],
}  # fmt: skip


class Ended(Exception):
    """A command has ended with another code than 0."""


@pytest.fixture
def give(tmp_path, monkeypatch):
    """Gives commands in an empty folder that has the configurations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def give(command, more=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time\n"))
        if command.program == "data_prep":
            arguments = [*command.arguments, *SMALLER.get(command.arguments[0], [])]
            code = importlib.import_module("data_prep.__main__").main(arguments)
        else:
            arguments = [*command.arguments, *SMALLER[command.program], *more]
            monkeypatch.setattr(sys, "argv", [command.program, *arguments])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / command.program), run_name="__main__")
            code = ended.value.code
        if code:
            raise Ended(f"{command.line} ends with {code}")

    return give


@pytest.mark.slow
def test_who_types_every_command_gets_from_a_corpus_to_a_published_model(give, tmp_path, capsys):
    for command in read_commands(ROOT / "README.md", "Train your own"):
        if command.arguments:
            give(command)
    trained = tmp_path / "runs" / "pythia-410m-stage1"
    assert (trained / "summary.json").is_file() and (trained / "texts.json").is_file()
    assert list((trained / "evaluation").glob("diagnostics-*.html"))
    assert capsys.readouterr().out.count("The ") >= 1
    tasks = shared("eval")
    (tmp_path / "runs" / "X").symlink_to(trained)
    (tmp_path / "runs" / "demo").symlink_to(trained)
    for name in ("books", "code"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "data" / "corpus" / "validation")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "The "}) + "\n")
    sections = [("inference.md", "Publish"), ("inference.md", "Generate"), ("inference.md", "Measure"),
                ("running.md", "The run folder")]  # fmt: skip
    for document, section in sections:
        for command in read_commands(ROOT / "docs" / document, section):
            if command.program in SMALLER:
                more = ["--task-data", str(tasks)] if command.program == "launch/eval.py" else []
                give(command, more)
    assert (tmp_path / "hf" / "config.json").is_file() and (tmp_path / "hf" / "reading.yaml").is_file()
    assert json.loads((tmp_path / "texts.jsonl").read_text())["text"]
    table = (trained / "evaluation" / "table.txt").read_text()
    assert all(name in table for name in ("books (exact)", "code (training)", "piqa", "lambada_openai"))
