"""dedup: remove documents whose text came before, exactly or nearly, anywhere in the inputs.

Exact duplicates have equal sha256. Near duplicates share most of their runs of five words: their similarity (Jaccard,
estimated from MinHash signatures) reaches the threshold. Of each group the first in reading order is kept. Three steps,
each of which goes on where it was interrupted: fingerprints of every unit, pairs of similar documents, the kept text.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.commands.arguments import add_filter_arguments, read_options, share
from data_prep.overlap.duplicates import (
    EXACT,
    REMOVED,
    Corpus,
    decide,
    exact_pairs,
    mark_dropped,
    near_pairs,
    partitions_of,
    place_of,
)
from data_prep.overlap.filtering import Filter, Result, filter_unit, filtered_output, gather, print_report
from data_prep.overlap.fingerprints import ROW, fingerprint_unit, mapped
from data_prep.overlap.signatures import Bands
from data_prep.reading.inputs import Unit, describe, files_of, find_inputs, plan_units
from data_prep.reading.places import Place, lines_before
from data_prep.reading.records import ReadOptions
from data_prep.work.executors import Report
from data_prep.work.outputs import Plan
from data_prep.work.progress import Progress
from data_prep.work.stages import Stage
from latentpt.data.errors import DataError

_LOWEST = 0.4  # below, every document would meet every other


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_filter_arguments(parser)
    parser.add_argument("--exact-only", action="store_true", help="remove exact duplicates only")
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.8,
        help="similarity from which documents are near duplicates (default: 0.8)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    output = Path(arguments.output)
    report = dedup(
        plan_units(find_inputs(arguments.input), arguments.unit_size),
        read_options(arguments),
        output,
        None if arguments.exact_only else arguments.threshold,
        arguments.executor,
        arguments.workers,
    )
    if report is None:
        print(f"{output}: is finished already")
    else:
        print_report(output, report)


def dedup(
    units: Sequence[Unit],
    options: ReadOptions,
    output: Path,
    threshold: float | None,
    executor: str,
    workers: int,
) -> Result | None:
    """Write the documents of `units` without duplicates to `output`.

    `threshold` is the similarity of near duplicates, None looks for exact ones only. Returns the report, or None when
    `output` is finished already.
    """
    if threshold is not None and threshold < _LOWEST:
        raise DataError(
            f"--threshold {threshold} is too low to tell documents apart; the lowest is {_LOWEST}"
        )
    made_with = {"command": "dedup", "threshold": threshold, **dataclasses.asdict(options)}
    plan = Plan(made_with, describe(files_of(units)))
    with filtered_output(output, plan) as work:
        if work is None:
            return None
        steps = _Steps(units, options, work, threshold, executor, workers)
        steps.find()
        results = steps.filter()
        return gather(results, work / "output", plan, {})


class _Steps:
    """The steps of a deduplication in the folder `work`."""

    def __init__(
        self,
        units: Sequence[Unit],
        options: ReadOptions,
        work: Path,
        threshold: float | None,
        executor: str,
        workers: int,
    ) -> None:
        self._units, self._options, self._work = units, options, work
        self._bands = Bands(threshold) if threshold is not None else None
        self._executor, self._workers = executor, workers
        self._partitions = partitions_of(sum(unit.size for unit in units))
        self._fingerprints = work / "fingerprints"
        self._removed = work / "removed.bin"

    def _run(self, stage: Stage, name: str, function: Any, items: Sequence[tuple[int, Any]]) -> list[Result]:
        with Progress(sum(item.size for _, item in items), name) as progress:
            for _ in stage.run(function, items, self._workers, self._executor, progress):
                pass
        return [stage.result(index) for index, _ in items]

    def find(self) -> None:
        """Fingerprints, pairs, and which documents are removed."""
        numbered = [(unit.index, unit) for unit in self._units]
        stage = Stage(self._fingerprints, "unit")
        arguments = (self._options, self._bands, len(self._partitions), self._fingerprints)
        made = self._run(stage, "fingerprints", partial(fingerprint_unit, *arguments), numbered)
        starts = itertools.accumulate((result["documents"] for result in made), initial=0)
        self._corpus = Corpus(tuple(str(stage.folder(unit.index)) for unit in self._units), tuple(starts))
        self._lines = lines_before((file, start, n) for result in made for file, start, n in result["lines"])
        if self._removed.is_file():
            return
        ranges = [(partition.number, partition) for partition in self._partitions]
        root, dropped = self._work, self._work / "dropped.bin"
        exact = Stage(root, "exact")
        self._run(exact, "exact duplicates", partial(exact_pairs, self._corpus, root), ranges)
        if not dropped.is_file():
            mark_dropped(dropped, self._corpus, [exact.folder(number) / "pairs.npy" for number, _ in ranges])
        if self._bands:
            near = partial(near_pairs, self._corpus, self._bands, dropped, root)
            self._run(Stage(root, "near"), "near duplicates", near, ranges)
        decide(self._corpus, root, len(ranges), self._bands is not None, dropped, self._removed)

    def filter(self) -> list[tuple[Path, Result]]:
        """Write what is kept, unit by unit; return where and how much."""
        stage = Stage(self._work, "unit")
        judging = _Judging(self._corpus, self._removed, self._lines, tuple(self._units), self._options, stage)
        numbered = [(unit.index, unit) for unit in self._units]
        results = self._run(stage, "writing", judging, numbered)
        return [(stage.folder(index), result) for (index, _), result in zip(numbered, results, strict=True)]


@dataclass(frozen=True)
class _Judging:
    corpus: Corpus
    removed: Path
    lines: dict[Place, int]
    units: tuple[Unit, ...]
    options: ReadOptions
    stage: Stage

    def __call__(self, unit: Unit, helpers: int, report: Report) -> Result:
        make = partial(Filter, self.options, _Known(self._reasons(unit.index)))
        return filter_unit(unit, self.options, self.stage.folder(unit.index), make, helpers, report)

    def _reasons(self, unit: int) -> dict[int, dict[str, Any]]:
        """Why documents of a unit are removed, by the numbers of their records."""
        removed = mapped(self.removed, REMOVED)
        start, end = self.corpus.starts[unit : unit + 2]
        low, high = np.searchsorted(removed["document"], [start, end])
        rows = mapped(Path(self.corpus.folders[unit]) / "rows.bin", ROW)
        return {
            int(rows[document - start]["number"]): self._reason(original, similarity)
            for document, original, similarity in removed[low:high].tolist()
        }

    def _reason(self, original: int, similarity: float) -> dict[str, Any]:
        unit, number, line = place_of(self.corpus, original)
        piece = self.units[unit].pieces[number]
        place = f"{piece.file}:{self.lines[piece.file, piece.start] + line}"
        if similarity == EXACT:
            return {"kind": "exact", "duplicate_of": place}
        return {"kind": "near", "duplicate_of": place, "similarity": round(similarity, 3)}


@dataclass(frozen=True)
class _Known:
    reasons: dict[int, dict[str, Any]]

    def __call__(self, number: int, _: str) -> dict[str, Any] | None:
        return self.reasons.get(number)
