"""Fair comparisons of thought methods: plan the arms, train them, report.

    python launch/compare.py plan   --config configs/comparisons/demo.yaml    write and print the plan
    python launch/compare.py run    --config ...                              train what is not finished
    python launch/compare.py report --config ...                              table, plots, HTML page

Overrides of the comparison's own keys follow as key=value, for example seeds=[0,1].
"""

import argparse
import sys
from pathlib import Path

from latentpt.compare.commands import plan, report, run
from latentpt.compare.config import ComparisonConfig
from latentpt.compare.launching import Interrupted
from latentpt.config import describe
from latentpt.run.exits import STOPPED, exit_code


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="keys of a comparison:\n" + describe(ComparisonConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = {"plan": plan, "run": run, "report": report}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--config", required=True, metavar="FILE", help="a comparison in YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the comparison")
    arguments = parser.parse_intermixed_args()
    trainer = Path(__file__).resolve().with_name("pretrain.py")

    def compare() -> None:
        try:
            print(commands[arguments.command](arguments.config, arguments.overrides, trainer))
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command continues") from None

    try:
        return exit_code(compare)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
