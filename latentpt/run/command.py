"""What the command lines of all trainings share. Nothing here imports torch, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Literal

from latentpt.config import ConfigError
from latentpt.data.errors import DataError

Start = Literal["auto", "resume", "fresh"]
"""auto: from the latest checkpoint if there is one; resume: there must be one; fresh: anew, setting the folder aside."""


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides, --print-config, --resume and --fresh."""
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="override an option")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and exit"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="go on from a checkpoint; an error if there is none"
    )
    start.add_argument(
        "--fresh", action="store_true", help="begin anew; the folder's old content is set aside"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher's


def asked_start(arguments: argparse.Namespace) -> Start:
    """What --resume and --fresh say."""
    return "resume" if arguments.resume else "fresh" if arguments.fresh else "auto"


def exit_code(command: Callable[[], object]) -> int:
    """Run a command on every rank; what cannot work is said once, in a sentence, and gives 2, all else 0."""
    try:
        command()
    except (ConfigError, DataError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
