"""decontaminate: remove documents that share a run of thirteen words with an evaluation file, and say which.

Every text in the evaluation files counts: all strings of JSON records, whole .txt files. A text shorter than the run
is looked for as a whole if it has at least eight words; still shorter ones would match by chance and are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.commands.arguments import read_options
from data_prep.overlap.filtering import add_filter_arguments, filter_unit, gather, output_folder, print_report
from data_prep.overlap.words import WordHashes, ngram_hashes, words_of
from data_prep.reading.documents import TextDocument
from data_prep.reading.inputs import Piece, Unit, find_inputs, input_size, plan_units
from data_prep.reading.records import PieceReader, ReadOptions
from data_prep.work.executors import map_units
from latentpt.data.errors import DataError

SHORTEST = 8  # words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_filter_arguments(parser)
    parser.add_argument(
        "--evaluation",
        nargs="+",
        required=True,
        help="evaluation files (.jsonl, .json, .txt, also .zst or .gz)",
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
    report = decontaminate(
        plan_units(find_inputs(arguments.input), arguments.unit_size),
        read_options(arguments),
        Path(arguments.output),
        find_inputs(arguments.evaluation),
        arguments.ngram,
        arguments.shared_runs,
        arguments.executor,
        arguments.workers,
    )
    print_report(report)


class Evaluation:
    """The runs of words of evaluation files, and which file each is from.

    Attributes:
        runs: for each length of run in words, its sorted hashes and the file number of each.
        texts, skipped: texts taken in, and those too short to be.
    """

    def __init__(self, files: list[str], ngram: int, folder: Path) -> None:
        """Read `files`; `folder` takes what does not fit in memory. Raises DataError when they hold no text."""
        self.files, self.ngram = files, ngram
        self.texts = self.skipped = 0
        found: dict[int, dict[int, int]] = {}
        hashes = WordHashes()
        for number, file in enumerate(files):
            for text in evaluation_texts(file, folder):
                words = hashes(words_of(text))
                length = min(ngram, len(words))
                if length < min(SHORTEST, ngram):
                    self.skipped += 1
                    continue
                self.texts += 1
                known = found.setdefault(length, {})
                for value in ngram_hashes(words, length).tolist():
                    known.setdefault(value, number)
        if not self.texts:
            raise DataError(f"{files[0]}: the evaluation files hold no text of at least {SHORTEST} words")
        self.runs: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}
        for length, known in sorted(found.items(), reverse=True):
            values = np.array(list(known), np.uint64)
            order = np.argsort(values)
            self.runs[length] = values[order], np.array(list(known.values()), np.int64)[order]

    def overlap(self, text: str, hashes: WordHashes, least: int) -> dict[str, Any] | None:
        """The first run of `text` that an evaluation file has too, and which; None if it shares fewer than `least`."""
        words = words_of(text)
        hashed = hashes(words)
        for length, (values, files) in self.runs.items():
            runs = ngram_hashes(hashed, length)
            at = np.minimum(np.searchsorted(values, runs), len(values) - 1)
            shared = np.flatnonzero(values[at] == runs)
            if shared.size >= least:
                first = int(shared[0])
                file = self.files[files[at[first]]]
                return {
                    "evaluation": file,
                    "shared": " ".join(words[first : first + length]),
                    "runs": int(shared.size),
                }
        return None


def evaluation_texts(file: str, folder: Path) -> Iterator[str]:
    """Every text in an evaluation file."""
    piece = Piece(file, 0, input_size(file))
    if piece.format in ("parquet", "arrow"):
        raise DataError(f"{file}: evaluation files are .jsonl, .json or .txt")
    for record in PieceReader(piece, ReadOptions(), folder):
        raw = record.raw.read_bytes() if isinstance(record.raw, Path) else record.raw or b""
        text = raw.decode("utf-8", "replace")
        if piece.format == "txt":
            yield text
            continue
        try:
            yield from _strings(json.loads(text))
        except ValueError as error:
            raise DataError(f"{file}: line {record.line} is not JSON ({error})") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def decontaminate(
    units: list[Unit],
    options: ReadOptions,
    output: Path,
    evaluation: list[str],
    ngram: int,
    shared_runs: int,
    executor: str,
    workers: int,
) -> dict[str, Any]:
    """Write the documents of `units` that share fewer than `shared_runs` runs of `ngram` words with `evaluation`.

    Returns the report.
    """
    if min(ngram, shared_runs) < 1:
        raise DataError(f"--ngram and --shared-runs must be at least 1, got {ngram} and {shared_runs}")
    with output_folder(output) as folder:
        known = Evaluation(evaluation, ngram, folder)
        results = map_units(partial(_filter, options, folder, known, shared_runs), units, executor, workers)
        details = {
            "evaluation": evaluation,
            "ngram": ngram,
            "shared_runs": shared_runs,
            "evaluation_texts": known.texts,
            "evaluation_texts_too_short": known.skipped,
        }
        return gather(folder, results, details)


def _filter(
    options: ReadOptions, folder: Path, evaluation: Evaluation, least: int, unit: Unit
) -> dict[str, Any]:
    hashes = WordHashes()

    def judge(_: int, document: TextDocument) -> dict[str, Any] | None:
        return evaluation.overlap(document.text, hashes, least)

    return filter_unit(unit, options, folder, judge)
