"""`python -m data_prep COMMAND ...`: prepare training data; bad input ends in one sentence and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import sys

from latentpt.data.errors import DataError

COMMANDS = {
    "sample": ("data_prep.sample", "write a small corpus of text that every Python installation has"),
    "train_tokenizer": ("data_prep.train_tokenizer", "train a byte-level BPE or a sentencepiece tokenizer"),
    "tokenize": ("data_prep.tokenizing", "turn text into shards"),
    "convert": ("data_prep.converting", "turn token files of other formats into shards, or shards into them"),
    "inspect": ("data_prep.inspecting", "say what shards hold"),
    "verify": ("data_prep.verifying", "check shards against everything they promise"),
    "dedup": ("data_prep.dedup", "remove exact and near duplicates from text"),
    "decontaminate": ("data_prep.decontaminate", "remove documents that overlap with evaluation files"),
    "bench": ("data_prep.bench", "measure tokenization beside the tokenizers library by itself"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="Prepare training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        if argv[:1] == [name]:  # import only what is asked for
            importlib.import_module(module).add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        importlib.import_module(COMMANDS[arguments.command][0]).run(arguments)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
