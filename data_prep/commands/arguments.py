"""Options that several commands share, and the kinds of values they take."""

from __future__ import annotations

import argparse
import os

from data_prep.reading.inputs import KNOWN
from data_prep.reading.records import ReadOptions

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def amount(text: str) -> int:
    """A count such as 500M, 1.5G or 4096 (powers of ten)."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        value = round(float(number) * _UNITS[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount; write 4096, 500M or 1.5G") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return value


def share(text: str) -> float:
    """A share such as 0.1% or 0.001."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 0.1% or 0.001") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie between 0 and 1, or 0% and 100%")
    return value


def task(text: str) -> tuple[int, int]:
    """Task i of n, written i/n."""
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no task; write 0/16 for the first of sixteen"
        ) from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text!r} must have its index from 0 to {count - 1}")
    return index, count


def unescaped(text: str) -> str:
    r"""`text` with escapes such as \n turned into what they stand for."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


def add_read_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what to read."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help=f"files, globs, directories or URLs of {KNOWN}; in directories hidden files and licences are passed over",
    )
    parser.add_argument("--text-field", default="text", help="field or column of the text (default: text)")
    parser.add_argument(
        "--source-field",
        default="meta.pile_set_name",
        help="field or column that names a document's source (default: meta.pile_set_name)",
    )
    parser.add_argument(
        "--separator",
        type=unescaped,
        help=r"what separates documents in .txt files, such as '\n\n' (default: one document a file)",
    )
    parser.add_argument(
        "--allow-damaged",
        action="store_true",
        help="keep what can be read of damaged files and list them in the quarantine (default: they are an error)",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes do the work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers",
        type=amount,
        default=cores,
        help=f"processes that do the work (default: the cores, {cores})",
    )


def add_unit_size(parser: argparse.ArgumentParser) -> None:
    """How much is done at a time."""
    parser.add_argument(
        "--unit-size",
        type=amount,
        default="256M",
        help="bytes of input done as one unit of work (default: 256M)",
    )


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say who does the work."""
    add_workers(parser)
    parser.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="local processes, or the tasks of a Ray cluster that shares the file system (default: local)",
    )


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that writes a corpus without some of its documents."""
    add_read_arguments(parser)
    add_executor_arguments(parser)
    parser.add_argument(
        "--output", required=True, help="folder to write the kept documents and the report to"
    )
    add_unit_size(parser)


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """What `add_read_arguments` read."""
    return ReadOptions(
        arguments.text_field, arguments.source_field, arguments.separator, arguments.allow_damaged
    )
