"""Every command in README, docs and the scripts' own help is read from the text and checked by the code that would run it.

Scripts parse it, configurations are loaded with its overrides, and every file it reads is in the repository, made by a command
before it, or the reader's own.
"""

import argparse
import importlib
import re
import runpy
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from latentpt.compare.config import load_comparison
from latentpt.config import ConfigError, load_config, options, parse_override
from latentpt.finetuning.building import BuildConfig
from latentpt.finetuning.config import load_finetune_config
from latentpt.finetuning.suite import SuiteConfig
from latentpt.run import RunConfig
from tests.docs.commands import DOCUMENTS, ROOT, Command, read_commands

# What documents take for granted: texts, models and checkouts of the reader's own, by the names they have there.
OWN = (
    "corpus*", "raw*", "eval*", "../shared*", "gpt-neox-20b*", "gpt2*", "llama-3.2-1b*", "pythia/*", "20B_tokenizer.json",
    "data/pile*", "data/books", "data/code", "data/gsm8k*", "dataset*", "train.bin", "data00.bin", "stories260K.bin",
    "tok512.model", "hf*", "prompts.jsonl", "questions.json", "runs/X", "runs/FINETUNED", "X", "*PonderLM-2", "x",
)  # fmt: skip
# Options that name something to read.
READS = ("config", "suite", "input", "tokenizer", "run", "model", "file", "report", "ask", "export", "evaluation", "data",
         "reference", "shards", "path", "paths")  # fmt: skip


class Parsed(BaseException):
    """What a script was asked to do."""


@pytest.fixture
def parse(monkeypatch):
    """Runs a script or module as far as its command line goes; returns what it read there."""
    for name in ("parse_args", "parse_intermixed_args"):
        whole = getattr(argparse.ArgumentParser, name)

        def stop(self, *arguments, whole=whole, **named):
            raise Parsed(whole(self, *arguments, **named))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)

    def parse(command):
        try:
            if command.program == "data_prep":
                importlib.import_module("data_prep.__main__").main(command.arguments)
            else:
                script = ROOT / command.program
                monkeypatch.setattr(sys, "argv", [str(script), *command.arguments])
                with monkeypatch.context() as patch:
                    patch.syspath_prepend(str(script.parent))
                    runpy.run_path(str(script), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
        raise AssertionError("reads no command line")

    return parse


class Reader:
    """Somebody who gives the commands of a document one after another, and knows which files there are by then."""

    def __init__(self, parse, document):
        self.parse, self.made = parse, shown_files(document)

    def problem(self, command):
        """What is wrong with a command, None if nothing is."""
        try:
            self.give(command)
        except SystemExit as ended:
            return None if ended.code in (0, None) else f"{command.line}: its arguments are refused"
        except (AssertionError, ConfigError) as error:
            return f"{command.line}: {error}"
        return None

    def give(self, command):
        program, arguments = command.program, command.arguments
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            wanted = [word for word in arguments if "=" not in word]
            assert set(wanted) <= set(targets), "no such target"
            self.made |= {"demo"} if "demo" in wanted else set()
        elif program == "pytest":
            files = [word for word in arguments if word.startswith("tests")]
            assert all((ROOT / word.split("::")[0]).exists() for word in files), "no such tests"
        elif program == "pip":
            assert arguments[:4] == ["install", "-c", "constraints.txt", "-e"], "installs without constraints"
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert re.fullmatch(r"\.\[(\w+)\]", arguments[4])[1] in extras, "no such extra"
        elif program == "tensorboard":
            return
        elif program == "sbatch":
            self.give_to_slurm(command)
        else:
            assert program == "data_prep" or (ROOT / program).is_file(), "no such script"
            if not arguments:
                return  # the script is named, not given
            self.mind_files(command, self.parse(named(command)))

    def give_to_slurm(self, command):
        words = command.words
        if "--wrap" in words:
            wrapped = words[words.index("--wrap") + 1].replace("$SLURM_ARRAY_TASK_ID", "0")
            script = Command(
                command.line, wrapped.replace(" ... ", " --input raw --tokenizer x --output y ").split()
            )
        else:
            (batch,) = (word for word in words if word.endswith(".sbatch"))
            assert (ROOT / batch).is_file(), "no such batch script"
            script = Command(command.line, ["python", "launch/pretrain.py", *words[words.index(batch) + 1 :]])
        self.give(script)

    def mind_files(self, command, asked):
        """Files that a command reads must be there; those that it writes are there from now on."""
        values = {name: value for name, value in vars(asked).items() if name in READS and value}
        for name, value in values.items():
            for path in value if isinstance(value, list) else [value]:
                place = str(path).partition("=")[2] if name == "data" and "=" in str(path) else str(path)
                assert self.there(place), f"{place} is not there, and no command before makes it"
        self.made |= written_by(command, asked)
        for key, value in self.overrides(command, asked):
            if key in ("data.train", "data.validation", "training.start_from") and isinstance(value, str):
                assert self.there(value), f"{value} is not there, and no command before makes it"

    def there(self, place):
        if (ROOT / place).exists() or any(fnmatch(place, own) for own in OWN):
            return True
        fixed = place.split("*")[0].rstrip("/")
        return any(
            fixed == made or fixed.startswith(made + "/") or made.startswith(fixed + "/")
            for made in self.made
        )

    def overrides(self, command, asked):
        """Overrides as keys and values; the configuration must take them."""
        given = getattr(asked, "overrides", [])
        config = getattr(asked, "config", None)
        pairs = [(".".join(keys), value) for keys, value in map(parse_override, given)]
        if config is not None and not (ROOT / config).is_file():
            known = {".".join(path) for path, _ in options(RunConfig)}
            unknown = [
                key for key, _ in pairs if command.program == "launch/pretrain.py" and key not in known
            ]
            assert not unknown, f"no options {unknown}"
            return pairs
        if command.program in ("launch/pretrain.py", "launch/bench.py") and config is not None:
            load_config(RunConfig, ROOT / config, given)  # the weights that it may start from are not here
        elif command.program == "launch/compare.py":
            load_comparison(ROOT / config, list(given))
        elif command.program == "launch/finetune.py" and config is not None:
            load_finetune_config(ROOT / config, given)
        elif command.program == "launch/finetune.py" and asked.suite is not None:
            load_config(SuiteConfig, ROOT / asked.suite, given)
        elif command.program == "launch/finetune.py" and asked.build:
            load_config(BuildConfig, None, given)
        return pairs


def named(command):
    """COMMAND stands for any of data_prep's."""
    return Command(command.line, ["tokenize" if word == "COMMAND" else word for word in command.words])


def shown_files(document):
    """Files that a document shows whole: `# cot.yaml` at the head of a block."""
    return set(re.findall(r"# ([\w-]+\.yaml)\b", document.read_text(encoding="utf-8")))


def written_by(command, asked):
    """Files and folders that a command leaves."""
    found = {str(output) for output in [getattr(asked, "output", None)] if output}
    if getattr(asked, "held_out", None):
        found |= {f"{asked.output}/train", f"{asked.output}/validation"}
    config = getattr(asked, "config", None)
    overrides = dict(word.split("=", 1) for word in getattr(asked, "overrides", []))
    if "output" in overrides:
        found.add(overrides["output"])
    elif config is not None and command.program in ("launch/pretrain.py", "launch/finetune.py"):
        found.add(f"runs/{Path(config).stem}")
    elif config is not None and command.program == "launch/compare.py":
        comparison = load_comparison(ROOT / config, [])
        found.add(str(comparison.folder))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_document_can_be_given(document, parse):
    reader = Reader(parse, document)
    problems = [reader.problem(command) for command in read_commands(document)]
    assert not list(filter(None, problems))


def test_the_documents_hold_the_commands_that_a_reader_needs():
    """The reading itself finds something: each script is shown somewhere."""
    documents = [path for path in DOCUMENTS if path.suffix == ".md"]
    shown = {command.program for document in documents for command in read_commands(document)}
    assert {f"launch/{path.name}" for path in (ROOT / "launch").glob("*.py")} <= shown
    assert {"make", "data_prep", "pip", "sbatch", "pytest"} <= shown
    assert len(read_commands(ROOT / "README.md")) >= 10


def test_messages_about_missing_packages_name_a_command_that_installs_them():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [path for room in ("latentpt", "data_prep", "launch") for path in (ROOT / room).rglob("*.py")]
    said = {path: re.findall(r"install (?:-|latentpt).*", path.read_text()) for path in sources}
    found = [(path.name, line) for path, lines in said.items() for line in lines]
    wanted = {line: re.match(r"install -c constraints\.txt -e '\.\[(\w+)\]'", line) for _, line in found}
    assert len(found) >= 5 and not [
        line for line, fits in wanted.items() if not fits or fits[1] not in extras
    ]


WRONG = """
    python launch/pretrain.py --config configs/demo.yaml optimizer.lrr=1
    python launch/pretrain.py --config configs/demo.yaml --colour red
    python launch/pretrain.py --config configs/none.yaml
    python launch/nothing.py --run runs/X
    python launch/eval.py --run runs/nowhere          which no command makes
    python -m data_prep tokenize --input raw --tokenizer missing.json --output there
    make nothing
"""


def test_a_command_that_cannot_be_given_is_found(tmp_path, parse):
    (tmp_path / "wrong.md").write_text(WRONG)
    commands = read_commands(tmp_path / "wrong.md")
    assert len(commands) == 7
    reader = Reader(parse, tmp_path / "wrong.md")
    assert all(reader.problem(command) for command in commands)


def test_words_behind_a_command_alternatives_and_dots_are_read_as_a_reader_reads_them(tmp_path):
    (tmp_path / "a.md").write_text(
        "    python launch/compare.py plan|run --config a.yaml    match, train\n"
        "    python launch/compare.py report   --config ...       the table\n\nand `echo 'x' | python launch/generate.py\n--run r`.\n"
    )
    assert [command.words[1:] for command in read_commands(tmp_path / "a.md")] == [
        ["launch/compare.py", "plan", "--config", "a.yaml"],
        ["launch/compare.py", "run", "--config", "a.yaml"],
        ["launch/compare.py", "report", "--config", "a.yaml"],
        ["launch/generate.py", "--run", "r"],
    ]
