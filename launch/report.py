"""Write the page about one run: curves, figures, texts, evaluation, configuration, machine and versions.

    python launch/report.py --run runs/X
    python launch/report.py --run runs/X --prompt 'Once upon a time'

A training writes it when it ends; this writes it again, with what was evaluated since, or for a run that is under way. The page
is FOLDER/report.html, which needs no other file, and its curves are FOLDER/report.png.
"""

import argparse
import sys

from latentpt.run.exits import exit_code


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of a run")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT",
                        help="text to continue, several allowed (default: beginnings of three held-out samples)")  # fmt: skip
    parser.add_argument("--no-texts", action="store_true", help="do not load the model to write texts")
    arguments = parser.parse_args()

    def write() -> None:
        from latentpt.report import report

        print(report(arguments.run, arguments.prompt, not arguments.no_texts))

    return exit_code(write)


if __name__ == "__main__":
    sys.exit(main())
