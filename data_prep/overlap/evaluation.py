"""Evaluation files: the runs of words that training data must not share with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.overlap.words import run_hashes, word_hashes, words_of
from data_prep.reading.inputs import TABLES, Piece, input_size
from data_prep.reading.records import PieceReader, ReadOptions
from latentpt.data.errors import DataError

SHORTEST = 8  # words


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
        found: dict[int, list[tuple[NDArray[np.uint64], int]]] = {}
        for number, file in enumerate(files):
            for text in evaluation_texts(file, folder):
                words = word_hashes(text)
                length = min(ngram, len(words))
                if length < min(SHORTEST, ngram):
                    self.skipped += 1
                    continue
                self.texts += 1
                found.setdefault(length, []).append((run_hashes(words, length), number))
        if not self.texts:
            raise DataError(f"{files[0]}: the evaluation files hold no text of at least {SHORTEST} words")
        self.runs: dict[int, tuple[NDArray[np.uint64], NDArray[np.int32]]] = {}
        for length, parts in sorted(found.items(), reverse=True):
            values = np.concatenate([runs for runs, _ in parts])
            owners = np.repeat(
                np.array([number for _, number in parts], np.int32), [len(runs) for runs, _ in parts]
            )
            unique, first = np.unique(values, return_index=True)
            self.runs[length] = unique, owners[first]

    def overlap(self, text: str, least: int) -> dict[str, Any] | None:
        """The first run of `text` that an evaluation file has too, and which; None if it shares fewer than `least`."""
        hashed = word_hashes(text)
        for length, (values, files) in self.runs.items():
            runs = run_hashes(hashed, length)
            at = np.minimum(np.searchsorted(values, runs), len(values) - 1)
            shared = np.flatnonzero(values[at] == runs)
            if shared.size >= least:
                first = int(shared[0])
                return {
                    "evaluation": self.files[files[at[first]]],
                    "shared": " ".join(words_of(text)[first : first + length]),
                    "runs": int(shared.size),
                }
        return None


def evaluation_texts(file: str, folder: Path) -> Iterator[str]:
    """Every text in an evaluation file."""
    piece = Piece(file, 0, input_size(file))
    if piece.format in TABLES:
        raise DataError(f"{file}: evaluation files are .jsonl, .json or .txt, compressed or not")
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
