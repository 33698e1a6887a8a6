"""`python -m data_prep COMMAND ...`: prepare training data; bad input ends in one sentence and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys

from latentpt.data.errors import DataError

COMMANDS = {
    "sample": "write a small corpus of text that every Python installation has",
    "train_tokenizer": "train a byte-level BPE or a sentencepiece tokenizer",
    "tokenize": "turn text into shards",
    "convert": "turn token files of other formats into shards, or shards into them",
    "inspect": "say what shards hold",
    "verify": "check shards against everything they promise",
    "dedup": "remove exact and near duplicates from text",
    "decontaminate": "remove documents that overlap with evaluation files",
}
_INTERRUPTED = 128 + signal.SIGINT
RESUMED = ("train_tokenizer", "tokenize", "convert", "verify", "dedup", "decontaminate")
FOR_DEVELOPERS = {"bench": "measure each command beside what it is to be compared with, in one run"}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Prepare training data.",
        epilog="For developers: " + "; ".join(f"{name}: {text}" for name, text in FOR_DEVELOPERS.items()),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, description in {**COMMANDS, **FOR_DEVELOPERS}.items():
        listed = {"help": description} if name in COMMANDS else {}
        command = commands.add_parser(name, description=description, **listed)
        if argv[:1] == [name]:  # import only what is asked for
            importlib.import_module(f"data_prep.commands.{name}").add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        importlib.import_module(f"data_prep.commands.{arguments.command}").run(arguments)
        sys.stdout.flush()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "goes on from here" if arguments.command in RESUMED else "begins again"
        print(f"interrupted; the same command {goes_on}", file=sys.stderr)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    code = main()
    if code == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is to leave
    sys.exit(code)
