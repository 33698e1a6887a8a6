"""Measure a model: held-out loss by source, tasks of lm-eval-harness, and whether its thoughts are used.

    python launch/eval.py --run runs/X                                       held-out loss, both forwards
    python launch/eval.py --run runs/X --tasks lambada_openai,piqa --limit 200
    python launch/eval.py --run runs/FINETUNED                               accuracy on its questions
    python launch/eval.py --model hf/ --data pile=data/pile-validation --diagnostics

Results go to the run's folder (or --output), beside what was measured before; an interrupted evaluation goes on where it
was. Every figure comes with its standard error and the number of items behind it.
"""

import argparse
import sys
from pathlib import Path

from latentpt.config import ConfigError
from latentpt.run.exits import exit_code


def arguments() -> argparse.Namespace:
    """The command line."""
    from latentpt.hub.source import add_device_argument, add_source_arguments, add_threshold_argument

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_arguments(parser)
    add_device_argument(parser)
    add_threshold_argument(parser)
    parser.add_argument(
        "--output", metavar="FOLDER", help="where results go (default: evaluation/ in the run's folder)"
    )
    parser.add_argument("--forward", choices=["training", "exact", "both"], default="both",
                        help="training: the forward that training uses; exact: decoding cell by cell; tasks take the "
                        "first of both (default both)")  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="sequences at once (default 16)"
    )

    held_out = parser.add_argument_group("held-out loss")
    held_out.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER",
                          help="shard folder to measure, several allowed (default: the run's validation folders)")  # fmt: skip
    held_out.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="samples of each folder, evenly spread (default: all; --diagnostics: 32)",
    )
    held_out.add_argument(
        "--length",
        type=int,
        metavar="TOKENS",
        help="tokens of a sample (default: that of the run, or of the run that an export came from, else max_positions)",
    )

    held_out.add_argument(
        "--mask-documents", action="store_true", help="keep documents apart (default: as it was trained)"
    )

    tasks = parser.add_argument_group("tasks of lm-eval-harness")
    tasks.add_argument(
        "--tasks", default="", metavar="NAMES", help="comma-separated; see latentpt/evaluation/tasks"
    )
    tasks.add_argument(
        "--fewshot", type=int, default=0, metavar="N", help="examples before each question (default 0)"
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="first documents of each task (default: all)")
    tasks.add_argument("--task-data", metavar="FOLDER",
                       help="files of the tasks (default: data/eval of LATENTPT_SHARED or of shared/ beside the checkout)")  # fmt: skip
    tasks.add_argument("--online", action="store_true", help="take tasks and data from the hub instead")

    questions = parser.add_argument_group(
        "a fine-tuned model: --data NAME=FILE of questions (default: its run's)"
    )
    questions.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="tokens an answer may have (default 64)"
    )

    parser.add_argument(
        "--diagnostics", action="store_true", help="find out whether the thoughts are used; one HTML page"
    )
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    """Measure and print."""
    from latentpt.evaluation.command import evaluate
    from latentpt.evaluation.held_out import named_sources
    from latentpt.finetuning import commands
    from latentpt.generation.text import Writer
    from latentpt.hub.source import open_source
    from latentpt.run.reading import read_reading

    if commands.is_finetuned(args):
        print(commands.evaluate(args))
        return
    source = open_source(args)
    named = [item.partition("=") for item in args.data]
    sources = {name: folder for name, equals, folder in named if equals}
    if len(sources) < len(named):
        raise ConfigError("--data is of the form NAME=FOLDER, each name once")
    if source.run is not None:
        sources = sources or named_sources(source.run.data.validation)
        args.length = args.length or source.run.data.sequence_length
        args.mask_documents |= source.run.data.mask_documents
    else:
        reading = read_reading(args.model)
        if reading is not None:
            args.length = args.length or reading.sequence_length
            args.mask_documents |= reading.mask_documents
    folder = Path(args.output or (Path(args.run) / "evaluation" if args.run else f"evaluation/{source.name}"))
    writer = Writer(source.model, source.tokenizer()) if args.tasks else None
    print(evaluate(source.model, writer, folder, sources, args))


def main() -> int:
    args = arguments()
    return exit_code(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
