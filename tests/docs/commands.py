"""The commands that a document shows, read from its text."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "launch").glob("*.py")),
]
PROGRAMS = ("python", "deepspeed", "make", "sbatch", "pytest", "pip", "echo", "tensorboard")
_BEGINS = re.compile(rf"^(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) ")


class Command(NamedTuple):
    """One command as a shell would take it: no variables before it, no explanation behind."""

    line: str
    """As it stands in the text."""
    words: list[str]

    @property
    def program(self) -> str:
        """What is run: a script, a module of the library or the tests as its file, `data_prep`, `make`, .. ."""
        words = self.words
        if words[0] == "python" and words[1] == "-m":
            inside = words[2].startswith(("latentpt.", "tests."))
            return f"{words[2].replace('.', '/')}.py" if inside else words[2]
        if words[0] in ("python", "deepspeed"):
            return next(word for word in words[1:] if word.endswith(".py"))
        return words[0]

    @property
    def arguments(self) -> list[str]:
        """Everything behind the program."""
        if self.words[1:2] == ["-m"]:
            return self.words[3:]
        first = self.words.index(self.program) if self.program in self.words else 0
        return self.words[first + 1 :]


def read_commands(path: Path, section: str = "") -> list[Command]:
    """Commands in code blocks and code spans of a document or of one section, or in the docstring of a script, in order."""
    text = path.read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    if path.suffix == ".py":
        text = text.split('"""')[1]
    found: list[Command] = []
    for line in _lines(text):
        for words in _alternatives(shlex.split(line)):
            found.append(_completed(Command(line, words), found))
    return found


def _lines(text: str) -> list[str]:
    """Command lines: of blocks without what explains them, of spans as they are."""
    text = text.replace("\\\n", " ")
    parts = re.split(
        r"((?:^ {4,}\S.*\n)+|^```(?:bash|sh|console)?\n(?:.*\n)*?```$)", text, flags=re.MULTILINE
    )
    found: list[str] = []
    for number, part in enumerate(parts):
        if number % 2:
            found += [_unexplained(line.strip()) for line in part.splitlines()]
        else:
            found += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", part)]
    return [_run(line) for line in found if _BEGINS.match(line)]


def _unexplained(line: str) -> str:
    """A line without the words that follow it at a distance."""
    pieces = re.split(r"\s{2,}(?![-\s])|\s+#\s", line)
    return re.sub(r"\s{2,}", " ", pieces[0])


def _run(line: str) -> str:
    """What a line runs: behind a pipe, without the variables before it."""
    return re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.split(" | ")[-1] if line.startswith("echo ") else line)


def _alternatives(words: list[str]) -> list[list[str]]:
    """`plan|run|report` stands for three commands."""
    choices = [word.split("|") if re.fullmatch(r"[\w|]+", word) else [word] for word in words]
    return [list(chosen) for chosen in itertools.product(*choices)]


def _completed(command: Command, before: list[Command]) -> Command:
    """`...` stands for what the command before of the same program had there, or for all of its arguments."""
    like = [one for one in before if one.program == command.program]
    if command.program == "data_prep":
        like = [one for one in like if one.arguments[:1] == command.arguments[:1]]
    words: list[str] = []
    for number, word in enumerate(command.words):
        last = command.words[number - 1]
        if word != "...":
            words.append(word)
        elif last.startswith("--"):
            given = next(
                (one.words[one.words.index(last) + 1] for one in like[::-1] if last in one.words), "X"
            )
            words.append(given)
        elif like:
            words += like[-1].arguments[1 if command.program == "data_prep" else 0 :]
    return Command(command.line, words)
