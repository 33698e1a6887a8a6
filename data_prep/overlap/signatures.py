"""What a document is compared by: the hash of its text, and a MinHash signature of its runs of five words.

The share of places in which two signatures agree estimates the Jaccard similarity J of the two sets of runs (Broder,
1997), with a standard deviation of sqrt(J (1 - J) / 128). Places are taken together in bands: documents that agree in a
whole band are compared. With b bands of r places two documents meet with probability 1 - (1 - J^r)^b.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.overlap.words import Hashes, run_hashes, word_hashes_of_all
from latentpt.data.errors import DataError

PLACES = 128
_RUN = 5  # words
_SEED = 1
_MEET = 0.95  # least probability that documents as similar as the threshold meet in a band
_DEVIATIONS = 2.0  # below the threshold that an estimate may lie

Signatures = NDArray[np.uint32]


@dataclass(frozen=True)
class Bands:
    """How signatures are cut into bands, and from which agreement documents count as near duplicates."""

    threshold: float
    """Similarity from which near duplicates are to be found."""

    @property
    def rows(self) -> int:
        """Places r of a band: the most with which documents at the threshold still meet."""
        rows = (r for r in range(PLACES, 1, -1) if self.meeting(self.threshold, r) >= _MEET)
        return next(rows, 1)

    @property
    def count(self) -> int:
        """Bands b."""
        return PLACES // self.rows

    @property
    def accepted(self) -> float:
        """Least share of equal places: an estimate of the threshold may lie two deviations below it."""
        return self.threshold - _DEVIATIONS * sqrt(self.threshold * (1 - self.threshold) / PLACES)

    @staticmethod
    def meeting(similarity: float, rows: int) -> float:
        """Probability that documents of a similarity agree in a band of `rows` places."""
        return 1 - (1 - similarity**rows) ** (PLACES // rows)

    def keys(self, signatures: Signatures) -> NDArray[np.uint64]:
        """Hash of every band of every signature [n, 128]: [n, count]; different bands never have to do with each other."""
        cut = signatures[:, : self.count * self.rows].astype(np.uint64)
        cut = cut.reshape(len(signatures), self.count, self.rows)
        keys = np.broadcast_to(np.arange(self.count, dtype=np.uint64), cut.shape[:2]).copy()
        for row in range(self.rows):
            keys = (keys ^ cut[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(32)
        return keys


def signatures_of(texts: list[str]) -> tuple[Signatures, NDArray[np.bool_]]:
    """Signatures [n, 128] of `texts`, and which of them have a word at all: [n]; the others are like nothing else.

    A text of fewer than five words is signed by all its words together.
    """
    runs, lengths = _runs_of_all(texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    matrix = _minhash().digest_matrix_from_flat_token_hashes(runs, offsets, PLACES, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, PLACES), lengths > 0


def _runs_of_all(texts: list[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the runs of every text, one text after another, [runs], and how many each text has, [n].

    All texts at once: most texts are short, and a call takes longer than the words of one.
    """
    words, owners = word_hashes_of_all(texts)
    counts = np.bincount(owners, minlength=len(texts))
    starts = np.cumsum(counts) - counts
    whole = (
        owners[: len(owners) - _RUN + 1] == owners[_RUN - 1 :]
    )  # the run ends in the text that it begins in
    short = np.flatnonzero((counts > 0) & (counts < _RUN))
    lengths = np.where(counts < _RUN, np.minimum(counts, 1), counts - _RUN + 1)
    at = (np.cumsum(lengths) - lengths)[short]
    runs = np.empty(int(lengths.sum()), np.uint64)
    of_short = np.zeros(len(runs), bool)
    of_short[at] = True
    runs[~of_short] = run_hashes(words, _RUN)[whole]
    for place, text in zip(at.tolist(), short.tolist(), strict=True):
        start, count = int(starts[text]), int(counts[text])
        runs[place] = run_hashes(words[start : start + count], count)[0]
    return runs, lengths


def _minhash() -> Any:
    try:
        from rensa import RMinHash
    except ImportError:
        raise DataError(
            "near duplicates need the package rensa; pip install -c constraints.txt -e '.[dedup]', or say --exact-only"
        ) from None
    return RMinHash
