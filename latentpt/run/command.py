"""What the command lines of all trainings share. Nothing here imports torch, so that --help is quick."""

from __future__ import annotations

import argparse
import math
import time
from typing import Literal, NamedTuple

Kind = Literal["auto", "resume", "fresh"]


class Start(NamedTuple):
    """Where a training in a folder that may hold one already starts."""

    kind: Kind = "auto"
    """auto: from the latest checkpoint if there is one; resume: there must be one; fresh: anew, setting the folder aside."""
    step: int | None = None
    """The checkpoint to go on from; None: the latest that is intact. Later ones are set aside."""
    other_data: bool = False
    """Go on although the data are not those that it was begun with."""
    deadline: float | None = None
    """A time.monotonic() of this process after which the training saves and stops."""


AUTO = Start()


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides, --print-config, and where to start from."""
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
    parser.add_argument(
        "--step", type=int, metavar="N", help="go on from the checkpoint of step N; later ones are set aside"
    )
    parser.add_argument(
        "--other-data", action="store_true", help="go on although the data are not those it was begun with"
    )
    parser.add_argument(
        "--minutes",
        type=minutes,
        metavar="M",
        help="save and stop after the step in which M minutes since this command's start are over; exit code 0",
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher's


def minutes(text: str) -> float:
    """A duration of the command line, which has an end and a beginning."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0, such as 90 or 0.5")
    return value


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """What a training would run on, where that is asked before it is begun."""
    devices = parser.add_argument_group("what it would run on")
    devices.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="number of devices (default: the processes that were started)",
    )
    devices.add_argument(
        "--device", metavar="NAME", help="name of the devices: H100, A100, .. (default: what is here)"
    )
    devices.add_argument(
        "--memory", type=float, metavar="GIB", help="memory of one in GiB (default: looked up by its name)"
    )
    devices.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="share of the peak arithmetic that is sustained, such as 0.4 (default: measured where that can be, else no time is told)",
    )
    devices.add_argument(
        "--price", type=float, metavar="AMOUNT", help="what one costs an hour, in any currency"
    )


def asked_start(arguments: argparse.Namespace) -> Start:
    """What the options say of where to start from, and of when to stop; called as the command begins."""
    kind: Kind = "resume" if arguments.resume else "fresh" if arguments.fresh else "auto"
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    return Start(kind, arguments.step, arguments.other_data, deadline)
