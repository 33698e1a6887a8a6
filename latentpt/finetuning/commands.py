"""What launch/generate.py, eval.py and export.py do with a fine-tuned model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from latentpt.config import ConfigError, require_at_least
from latentpt.data.errors import DataError
from latentpt.files import write_text
from latentpt.finetuning import use
from latentpt.finetuning.use import Opened, ask, find_reasoner, measure, open_reasoner, sentence
from latentpt.generation.text import Writer
from latentpt.hub.source import pick_device

GREEDY = "it answers greedily"
UNUSED: dict[str, tuple[Any, str]] = {
    "step": (None, "its best checkpoint is what is used"),
    "tokenizer": (None, "it brings its own, markers included"),
    "temperature": (0.0, GREEDY),
    "top_k": (None, GREEDY),
    "top_p": (1.0, GREEDY),
    "repetition_penalty": (1.0, GREEDY),
    "stop": ([], "its end token ends an answer"),
    "show_thoughts": (0, "launch/finetune.py --report shows what its latents hold"),
    "prefill": ("exact", "its questions are read exactly"),
    "prefill_chunk": (None, "its questions are read at once"),
    "weights": ("float32", "its weights stay as they are"),
    "draft": (0, "it says one token after another"),
}
"""Options without a meaning here: what they are when nobody gave them, and why."""


def folder_of(arguments: argparse.Namespace) -> str:
    """What --run or --model names."""
    return str(arguments.run or arguments.model)


def is_finetuned(arguments: argparse.Namespace) -> bool:
    """Whether the arguments name a fine-tuned model: a run of launch/finetune.py or what was exported of one."""
    return find_reasoner(folder_of(arguments)) is not None


def opened(arguments: argparse.Namespace) -> Opened:
    """The model that the arguments name; raises ConfigError for options that mean nothing to it."""
    for name, (unset, why) in UNUSED.items():
        if getattr(arguments, name, unset) != unset:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} says nothing about a fine-tuned model ({why}); leave it out")
    return open_reasoner(folder_of(arguments), pick_device(arguments))


# ---------------------------------------------------------------------------------------------- generate


def generate(arguments: argparse.Namespace) -> None:
    """Answer the questions of --prompt, of --file, or of the standard input, one a line."""
    require_at_least(arguments, max_new_tokens=1, batch_size=1)
    model = opened(arguments)

    def answers(questions: list[str]) -> list[str]:
        return ask(model, questions, arguments.max_new_tokens, arguments.batch_size)

    if arguments.file is None:
        questions: Any = arguments.prompt or _typed()
        for question in [questions] if arguments.prompt else ([line] for line in questions):
            print("\n\n".join(map("{}\n{}".format, question, answers(question))), flush=True)
        return
    records = list(_records(Path(arguments.file)))
    texts = answers([record["prompt"] for record in records])
    lines = (record | {"text": text} for record, text in zip(records, texts, strict=True))
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if arguments.output is None:
        print(written, end="")
    else:
        write_text(Path(arguments.output), written)


def _typed() -> Iterator[str]:
    """Lines of the standard input until it ends."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line:
            yield line


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """JSON lines with a prompt; raises DataError naming the first that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["prompt"].encode()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f'{path}: line {number} is no JSON object with a text under "prompt"') from None
        yield record


# ---------------------------------------------------------------------------------------------- evaluate


def evaluate(arguments: argparse.Namespace) -> str:
    """Accuracy on files of questions; everything else that was asked for is measured on the model as it reads plain text.

    --data NAME=FILE names questions, NAME=FOLDER shards; without it the questions are the run's own. What comes out is
    told and kept in questions.json in the folder of the evaluation.
    """
    require_at_least(arguments, batch_size=1, samples=1, max_new_tokens=1)
    model = opened(arguments)
    named = [item.partition("=") for item in arguments.data]
    sources = {name: path for name, equals, path in named if equals}
    if len(sources) < len(named):
        raise ConfigError("--data is of the form NAME=FILE or NAME=FOLDER, each name once")
    plain = {name: path for name, path in sources.items() if Path(path).is_dir()}
    questions = {name: path for name, path in sources.items() if name not in plain}
    if not sources and not arguments.tasks and not arguments.diagnostics:
        questions = own_questions(folder_of(arguments))
    beside = f"evaluation/{Path(arguments.model).resolve().name}" if arguments.model else None
    folder = Path(arguments.output or beside or f"{arguments.run}/evaluation")
    told, kept = [], {}
    for name, path in questions.items():
        found = measure(model, path, arguments.samples, arguments.max_new_tokens, arguments.batch_size)
        told.append(sentence(name, found))
        kept[name] = {"file": str(path), **found._asdict()}
    if kept:
        write_text(folder / "questions.json", json.dumps(kept, indent=1) + "\n")
    if plain or arguments.tasks or arguments.diagnostics:
        from latentpt.evaluation.command import evaluate as evaluate_plainly

        language = model.reasoner.language
        told.append(evaluate_plainly(language, Writer(language, model.tokenizer), folder, plain, arguments))
    return "\n".join(told)


def own_questions(folder: str) -> dict[str, str]:
    """The test files of a run by name, or its validation file; raises ConfigError where nobody names any."""
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{folder} names no questions; name a file of them with --data NAME=FILE")
    data = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    return dict(data["test"]) or {"validation": data["validation"]}


# ---------------------------------------------------------------------------------------------- export


def publish(arguments: argparse.Namespace) -> str:
    """Write the model for transformers; returns a sentence that says how to load it."""
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    return use.publish(opened(arguments), arguments.output, dtype, arguments.name)
