"""The generate command: prompts from the command line, from a file of JSON lines, or typed in."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latentpt.config import require_at_least
from latentpt.data.errors import DataError
from latentpt.files import write_text
from latentpt.generation.look import look, records, table
from latentpt.generation.narrow import narrow_matrices
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Options, Writer
from latentpt.seeding import stream
from latentpt.thoughts.model import LanguageModel

_HELP = """Type a text and the model goes on from everything said so far; an empty line lets it go on alone.
Ctrl-C ends an answer, /new forgets what was said, /quit (or the end of the input) leaves."""


def run(writer: Writer, arguments: argparse.Namespace) -> None:
    """Do what launch/generate.py was asked to; raises DataError or ValueError for what cannot be done."""
    options, top = read_options(arguments), arguments.show_thoughts
    if arguments.weights == "bf16":
        store_in_bf16(writer.model)
    if arguments.file is not None:
        write_text_lines(writer, Path(arguments.file), arguments.output, options, arguments.batch_size, top)
    elif arguments.prompt is None and sys.stdin.isatty():
        converse(writer, options, top)
    else:
        prompts = arguments.prompt or [sys.stdin.read() if not sys.stdin.isatty() else ""]
        texts = continue_prompts(writer, prompts, options)
        for prompt, text in zip(prompts, texts, strict=True):
            if top:
                print()
                print_thoughts(writer, prompt + text, top)


def store_in_bf16(model: LanguageModel) -> None:
    """Half the bytes to read for every token; rows stay float32 on a CPU, whose bf16 products are slower than memory."""
    if next(model.parameters()).is_cuda:
        model.to(torch.bfloat16)
    else:
        narrow_matrices(model, torch.bfloat16)


def read_options(arguments: argparse.Namespace) -> Options:
    """The command line's options of writing; raises ValueError for values that mean nothing."""
    require_at_least(arguments, max_new_tokens=1, batch_size=1, draft=0, show_thoughts=0)
    if "" in arguments.stop:
        raise ValueError("--stop needs a text that is not empty: every text ends with the empty one")
    if arguments.output is not None and arguments.file is None:
        raise ValueError(
            "--output is where the results of --file go; without --file, redirect the standard output"
        )
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, arguments.repetition_penalty
    )
    prefill = Prefill(
        arguments.prefill, arguments.prefill_tolerance, arguments.prefill_sweeps, arguments.prefill_chunk
    )
    return Options(arguments.max_new_tokens, sampling, tuple(arguments.stop), prefill, arguments.draft)


def print_thoughts(writer: Writer, text: str, top: int, first: int = 0) -> None:
    """What is thought at every token of a text from number `first` on."""
    ids = writer.encode(text)
    thoughts = [thought for thought in look(writer.model, ids, top) if thought.position >= first]
    print(table(thoughts, ids, writer.tokenizer))


def continue_prompts(writer: Writer, prompts: list[str], options: Options) -> list[str]:
    """Print each prompt with its continuation, a single one as it is written; returns the continuations."""
    encoded = [writer.encode(prompt) for prompt in prompts]
    if len(prompts) == 1:
        unsaid = [prompts[0]]  # it comes with the first piece, so that a refusal stands alone

        def hear(_: int, piece: str) -> None:
            print((unsaid.pop() if unsaid else "") + piece, end="", flush=True)

        texts = writer.continue_ids(encoded, options, hear)
        print(unsaid.pop() if unsaid else "")
        return texts
    texts = writer.continue_ids(encoded, options)
    print("\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)))
    return texts


# ------------------------------------------------------------------------------------------------ JSON lines


def write_text_lines(
    writer: Writer, path: Path, output: str | None, options: Options, batch_size: int, top: int = 0
) -> None:
    """Continue the `prompt` of every line of a file; write the lines with `text` added, in their order.

    With `top` a line also gets `thoughts`, see `look.records`, with so many tokens for every slot.

    A line may have a `seed` of its own; the others draw from the command's seed and their number. Prompts of like
    length are decoded together.
    """
    lines = list(read_lines(path))
    ids = [writer.encode(line["prompt"]) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: len(ids[index]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        streams = [_stream(lines[index], index, options.sampling.seed) for index in batch]
        texts = writer.continue_ids([ids[index] for index in batch], options, streams=streams)
        for index, text in zip(batch, texts, strict=True):
            lines[index]["text"] = text
            if top:
                read = writer.encode(lines[index]["prompt"] + text)
                lines[index]["thoughts"] = records(look(writer.model, read, top), read, writer.tokenizer)
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if output is None:
        print(written, end="")
    else:
        write_text(Path(output), written)


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


def converse(writer: Writer, options: Options, top: int = 0) -> None:
    """Read lines from a terminal and go on from everything said so far; `top` > 0 shows thoughts after each answer."""
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
        known = len(writer.encode(said)) if said else 0
        said += line if not said or not line else "\n" + line
        said += answer(writer, said, options, turn)
        if top:
            print_thoughts(writer, said, top, known)


def answer(writer: Writer, said: str, options: Options, turn: int) -> str:
    """Print what the model says next and return it; Ctrl-C ends it early.

    Where not everything fits model.max_positions, the oldest tokens are forgotten; an answer takes half of them at most.
    """
    limit = writer.model.config.max_positions
    options = options._replace(max_new_tokens=min(options.max_new_tokens, max(limit // 2, 1)))
    ids = fitting(writer.encode(said), limit - options.max_new_tokens)
    pieces: list[str] = []

    def hear(_: int, piece: str) -> None:
        pieces.append(piece)
        print(piece, end="", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        writer.continue_ids([ids], options, hear, streams=[stream(options.sampling.seed, "turn", turn)])
    print()
    return "".join(pieces)


def fitting(ids: list[int], room: int) -> list[int]:
    """The last ids that fit; at least one."""
    return ids[-max(room, 1) :]
