"""The generate command: prompts from the command line, from a file of JSON lines (`lines`), or typed in."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import torch

from latentpt.config import require_at_least
from latentpt.generation.lines import write_text_lines
from latentpt.generation.look import look, table
from latentpt.generation.narrow import narrow_matrices
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Continuation, Options, Writer
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
    elif arguments.prompt is None and arguments.ids is None and sys.stdin.isatty():
        converse(writer, options, top)
    else:
        prompts = given_ids(writer, arguments.ids) if arguments.ids else given_texts(writer, arguments.prompt)
        found = continue_prompts(writer, prompts, options)
        for prompt, (_, new) in zip(prompts, found, strict=True):
            if top:
                print()
                print_thoughts(writer, [*prompt.ids, *new], top)


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


def given_texts(writer: Writer, texts: list[str] | None) -> list[Continuation]:
    """Prompts as texts: those of the command line, or the standard input without the newline that ends it."""
    texts = texts or [
        sys.stdin.read().removesuffix("\n").removesuffix("\r") if not sys.stdin.isatty() else ""
    ]
    return [Continuation(text, writer.encode(text)) for text in texts]


def given_ids(writer: Writer, given: list[str]) -> list[Continuation]:
    """Prompts as ids, numbers between commas or blanks; nothing is put before them."""
    found = []
    for text in given:
        numbers = text.replace(",", " ").split()
        ids = [int(number) if number.isdecimal() else None for number in numbers]
        known = writer.check_ids(ids, f"--ids {text}")
        found.append(Continuation(writer.tokenizer.decode(known), known))
    return found


def print_thoughts(writer: Writer, ids: list[int], top: int, first: int = 0, forgotten: int = 0) -> None:
    """What is thought at every token of a text from number `first` on; the `forgotten` ones at its beginning were not read."""
    read = writer.seen(fitting(ids, len(ids) - forgotten, writer.begin))
    thoughts = [thought for thought in look(writer.model, read, top) if forgotten + thought.position >= first]
    print(table(thoughts, read, writer.tokenizer, forgotten))


def continue_prompts(writer: Writer, prompts: list[Continuation], options: Options) -> list[Continuation]:
    """Print each prompt with its continuation, a single one as it is written; returns the continuations."""
    encoded = [prompt.ids for prompt in prompts]
    if len(prompts) == 1:
        unsaid = [prompts[0].text]  # it comes with the first piece, so that a refusal stands alone

        def hear(_: int, piece: str) -> None:
            print((unsaid.pop() if unsaid else "") + piece, end="", flush=True)

        found = writer.continuations(encoded, options, hear)
        print(unsaid.pop() if unsaid else "")
        return found
    found = writer.continuations(encoded, options)
    print("\n\n".join(prompt.text + new.text for prompt, new in zip(prompts, found, strict=True)))
    return found


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
        text, forgotten = answer(writer, said, options, turn)
        said += text
        if top:
            print_thoughts(writer, writer.encode(said), top, known, forgotten)


def answer(writer: Writer, said: str, options: Options, turn: int) -> tuple[str, int]:
    """Print what the model says next; returns it, and how many tokens it has forgotten. Ctrl-C ends it early.

    Where not everything fits model.max_positions, the oldest tokens are forgotten; an answer takes half of them at most.
    """
    limit = writer.model.config.max_positions
    options = options._replace(max_new_tokens=min(options.max_new_tokens, max(limit // 2, 1)))
    everything = writer.encode(said)
    ids = fitting(everything, limit - options.max_new_tokens, writer.begin)
    pieces: list[str] = []

    def hear(_: int, piece: str) -> None:
        pieces.append(piece)
        print(piece, end="", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        writer.continue_ids([ids], options, hear, streams=[stream(options.sampling.seed, "turn", turn)])
    print()
    return "".join(pieces), len(everything) - len(ids)


def fitting(ids: list[int], room: int, begin: int | None = None) -> list[int]:
    """The last ids that fit, at least one; an id that begins every text stays at the beginning."""
    kept = ids[-max(room, 1) :]
    return kept if begin is None or len(kept) in (1, len(ids)) else [begin, *kept[1:]]
