"""Fair comparisons of thought methods: plan the arms, train them, report.

    python launch/compare.py plan   --config configs/comparisons/demo.yaml    write and print the plan
    python launch/compare.py run    --config ...                              train what is not finished
    python launch/compare.py report --config ...                              tables, plots, HTML page

Overrides of the comparison's own keys follow as key=value, for example seeds=[0,1]. A comparison with a `ladder` is a
study over sizes and budgets (docs/scaling.md). `run` goes on where it stopped, and several of it share the work.
"""

import argparse
import sys
from pathlib import Path

from latentpt.compare.commands import plan, report, run
from latentpt.compare.config import ComparisonConfig, LadderConfig
from latentpt.compare.running.execute import Share
from latentpt.compare.running.launching import Interrupted
from latentpt.config import describe, require_at_least
from latentpt.run.exits import STOPPED, exit_code


def task(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1")
    return int(number), int(count)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"keys of a comparison:\n{describe(ComparisonConfig)}\n\nkeys of its ladder:\n{describe(LadderConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["plan", "run", "report"])
    parser.add_argument("--config", required=True, metavar="FILE", help="a comparison in YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the comparison")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="plan: train the first steps of every arm and size to say how long all takes",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="run: trainings side by side (default: as many as the devices allow)",
    )
    parser.add_argument(
        "--task",
        type=task,
        default=(0, 1),
        metavar="I/N",
        help="run: only runs I, I + N, .. of the plan, I from 0, for job arrays",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="run: stop after M minutes; trainings save and go on with the next run",
    )
    arguments = parser.parse_intermixed_args()
    trainer = Path(__file__).resolve().with_name("pretrain.py")

    def compare() -> None:
        try:
            require_at_least(arguments, at_once=1, minutes=0)
            asked = arguments.config, arguments.overrides, trainer
            if arguments.command == "plan":
                print(plan(*asked, arguments.probe))
            elif arguments.command == "run":
                print(run(*asked, Share(arguments.task, arguments.at_once, arguments.minutes)))
            else:
                print(report(*asked))
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command continues") from None

    try:
        return exit_code(compare)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
