"""Disturb a training again and again, and see whether it becomes what it would have been.

    python launch/soak.py --config configs/soak.yaml --output runs/soak          on the text of `make demo`
    python launch/soak.py --config configs/soak.yaml --output runs/signals --between 15 30 \
        --signals KILL,TERM,INT,HUP,USR1 training.steps=500

The configuration is trained twice by a launcher with real processes: undisturbed, and with signals to its processes, drawn from
--seed. Compared are all losses and norms, bit by bit, and the last checkpoint; watched are steps lost, processes left, memory,
handles and threads. Exit code 1: something differs, grows or is lost.
"""

import argparse
import signal
import sys
from pathlib import Path

from latentpt.config import ConfigError, require_at_least
from latentpt.run.exits import exit_code
from latentpt.training.start import load_run_config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a run in YAML")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="override an option of the run"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="where it keeps everything; the same command goes on with a soak that was cut off",
    )
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes that train (default: 2)")
    parser.add_argument(
        "--launcher",
        choices=("deepspeed", "torchrun"),
        default="deepspeed",
        help="what starts them (default: deepspeed)",
    )
    parser.add_argument(
        "--between", type=int, nargs=2, default=(100, 300), metavar="STEPS",
        help="least and most steps between two signals (default: 100 300)",
    )  # fmt: skip
    parser.add_argument(
        "--signals",
        default="KILL,TERM",
        metavar="NAMES",
        help="signals, comma-separated (default: KILL,TERM)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="what is drawn from it: when, what, to whom (default: 0)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=100,
        metavar="STEPS",
        help="steps between two looks at memory (default: 100)",
    )
    parser.add_argument(
        "--grace", type=float, default=60.0, metavar="SECONDS",
        help="after a signal no process may be left after so long (default: 60)",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    return exit_code(lambda: soak(arguments))


def soak(arguments: argparse.Namespace) -> None:
    """Draw the faults, then train."""
    from latentpt.benchmark.soak import PROCESSES, Soak, draw_faults

    require_at_least(arguments, ranks=1, samples=1, grace=1.0)
    config = load_run_config(arguments.config, arguments.overrides)
    low, high = arguments.between
    if not 1 <= low <= high:
        raise ConfigError(f"--between {low} {high} must be two numbers of steps, the smaller first")
    names = arguments.signals.split(",")
    for name in names:
        if f"SIG{name}" not in signal.Signals.__members__:
            raise ConfigError(f"--signals {arguments.signals} must be names such as KILL,TERM,INT,HUP,USR1")
    processes = PROCESSES[arguments.launcher]
    faults = draw_faults(arguments.seed, config.steps, (low, high), names, processes, arguments.ranks)
    Soak(
        config, arguments.output, arguments.launcher, arguments.ranks, faults, arguments.samples, arguments.grace,
        lambda text: print(text, flush=True),
    ).run()  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
