"""The generate command: prompts from the command line, from a file of JSON lines, or typed in."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latentpt.data.errors import DataError
from latentpt.files import write_text
from latentpt.generation.look import look, table
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Options, Writer
from latentpt.seeding import stream

_HELP = """Type a text and the model goes on from everything said so far; an empty line lets it go on alone.
/new forgets what was said, /quit (or the end of the input) leaves."""


def run(writer: Writer, arguments: argparse.Namespace) -> None:
    """Do what launch/generate.py was asked to; raises DataError or ValueError for what cannot be done."""
    options = read_options(arguments)
    if arguments.file is not None:
        write_text_lines(writer, Path(arguments.file), arguments.output, options, arguments.batch_size)
    elif arguments.prompt is None and sys.stdin.isatty():
        converse(writer, options)
    else:
        prompts = arguments.prompt or [sys.stdin.read() if not sys.stdin.isatty() else ""]
        texts = continue_prompts(writer, prompts, options)
        for prompt, text in zip(prompts, texts, strict=True):
            if arguments.show_thoughts:
                ids = writer.encode(prompt + text)
                print()
                print(table(look(writer.model, ids, arguments.show_thoughts), ids, writer.tokenizer))


def read_options(arguments: argparse.Namespace) -> Options:
    """The command line's options of writing."""
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, arguments.repetition_penalty
    )
    prefill = Prefill(
        arguments.prefill, arguments.prefill_tolerance, arguments.prefill_sweeps, arguments.prefill_chunk
    )
    return Options(arguments.max_new_tokens, sampling, tuple(arguments.stop), prefill, arguments.draft)


def continue_prompts(writer: Writer, prompts: list[str], options: Options) -> list[str]:
    """Print each prompt with its continuation, a single one as it is written; returns the continuations."""
    encoded = [writer.encode(prompt) for prompt in prompts]
    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
        texts = writer.continue_ids(encoded, options, lambda _, text: print(text, end="", flush=True))
        print()
        return texts
    texts = writer.continue_ids(encoded, options)
    print("\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)))
    return texts


# ------------------------------------------------------------------------------------------------ JSON lines


def write_text_lines(
    writer: Writer, path: Path, output: str | None, options: Options, batch_size: int
) -> None:
    """Continue the `prompt` of every line of a file; write the lines with `text` added, in their order.

    A line may have a `seed` of its own; the others draw from the command's seed and their number. Prompts of like
    length are decoded together.
    """
    records = list(read_lines(path))
    ids = [writer.encode(record["prompt"]) for record in records]
    order = sorted(range(len(records)), key=lambda index: len(ids[index]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        streams = [_stream(records[index], index, options.sampling.seed) for index in batch]
        texts = writer.continue_ids([ids[index] for index in batch], options, streams=streams)
        for index, text in zip(batch, texts, strict=True):
            records[index]["text"] = text
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if output is None:
        print(lines, end="")
    else:
        write_text(Path(output), lines)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file; raises DataError naming the first line that is none."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise DataError(f'{path}: line {number} has no text under "prompt"')
        if not isinstance(record.get("seed", 0), int):
            raise DataError(f"{path}: line {number} has a seed that is no whole number")
        yield record


def _stream(record: dict[str, Any], index: int, seed: int) -> torch.Generator:
    """A seed of the record's own acts as if the record stood alone."""
    return stream(record["seed"], "row", 0) if "seed" in record else stream(seed, "row", index)


# ------------------------------------------------------------------------------------------------ conversation


def converse(writer: Writer, options: Options) -> None:
    """Read lines from a terminal and go on from everything said so far."""
    print(_HELP)
    said = ""
    for turn in range(1_000_000):
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        if line == "/new":
            said = ""
            continue
        said += line if not said or not line else "\n" + line
        ids = fitting(writer.encode(said), writer.model.config.max_positions - options.max_new_tokens)
        streams = [stream(options.sampling.seed, "turn", turn)]
        said += writer.continue_ids(
            [ids], options, lambda _, text: print(text, end="", flush=True), streams=streams
        )[0]
        print()


def fitting(ids: list[int], room: int) -> list[int]:
    """The last ids that fit; at least one."""
    return ids[-max(room, 1) :]
