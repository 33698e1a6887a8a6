"""decontaminate: remove documents that share a run of thirteen words with an evaluation file, and say which.

Every text in the evaluation files counts: all strings of JSON records, whole .txt files. A text shorter than the run
is looked for as a whole if it has at least eight words; still shorter ones would match by chance and are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.commands.arguments import add_filter_arguments, read_options
from data_prep.overlap.evaluation import Evaluation
from data_prep.overlap.filtering import Filter, Result, filter_unit, filtered_output, gather, print_report
from data_prep.reading.inputs import Unit, describe, files_of, find_inputs, plan_units
from data_prep.reading.records import ReadOptions
from data_prep.work.executors import Report
from data_prep.work.outputs import Plan
from data_prep.work.progress import Progress
from data_prep.work.stages import Stage
from latentpt.data.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_filter_arguments(parser)
    parser.add_argument(
        "--evaluation",
        nargs="+",
        required=True,
        help="evaluation files (.jsonl, .json, .txt, compressed or not)",
    )
    parser.add_argument(
        "--ngram", type=int, default=13, help="words of the run that must not be shared (default: 13)"
    )
    parser.add_argument(
        "--shared-runs",
        type=int,
        default=1,
        help="runs a document must share to be removed; more than 1 lets common phrases pass (default: 1)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    output = Path(arguments.output)
    report = decontaminate(
        plan_units(find_inputs(arguments.input), arguments.unit_size),
        read_options(arguments),
        output,
        find_inputs(arguments.evaluation),
        arguments.ngram,
        arguments.shared_runs,
        arguments.executor,
        arguments.workers,
    )
    if report is None:
        print(f"{output}: is finished already")
    else:
        print_report(output, report)


@dataclass(frozen=True)
class _Judge:
    known: Evaluation
    least: int

    def __call__(self, _: int, text: str) -> dict[str, Any] | None:
        return self.known.overlap(text, self.least)


def decontaminate(
    units: Sequence[Unit],
    options: ReadOptions,
    output: Path,
    evaluation: list[str],
    ngram: int,
    shared_runs: int,
    executor: str,
    workers: int,
) -> Result | None:
    """Write the documents of `units` that share fewer than `shared_runs` runs of `ngram` words with `evaluation`.

    Returns the report, or None when `output` is finished already.
    """
    if min(ngram, shared_runs) < 1:
        raise DataError(f"--ngram and --shared-runs must be at least 1, got {ngram} and {shared_runs}")
    made_with = {"command": "decontaminate", "ngram": ngram, "shared_runs": shared_runs}
    plan = Plan(
        {**made_with, "evaluation": describe(evaluation), **dataclasses.asdict(options)},
        describe(files_of(units)),
    )
    with filtered_output(output, plan) as work:
        if work is None:
            return None
        known = Evaluation(evaluation, ngram, work)
        stage = Stage(work, "unit")
        judge = Filter(options, _Judge(known, shared_runs))
        with Progress(sum(unit.size for unit in units)) as progress:
            numbered = [(unit.index, unit) for unit in units]
            for _ in stage.run(partial(_filter, judge, stage), numbered, workers, executor, progress):
                pass
        details = {"evaluation_texts": known.texts, "evaluation_texts_too_short": known.skipped}
        results = [(stage.folder(unit.index), stage.result(unit.index)) for unit in units]
        return gather(results, work / "output", plan, details)


def _filter(judge: Filter, stage: Stage, unit: Unit, helpers: int, report: Report) -> Result:
    return filter_unit(unit, judge.options, stage.folder(unit.index), partial(_same, judge), helpers, report)


def _same(judge: Filter) -> Filter:
    return judge
