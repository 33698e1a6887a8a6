"""dedup: remove documents whose text came before, exactly or nearly, anywhere in the inputs.

Exact duplicates have equal sha256. Near duplicates share most of their runs of five words: their similarity (Jaccard,
estimated from MinHash signatures) reaches the threshold. Of each group the first in reading order is kept. Hashes and
signatures are computed unit by unit; which documents go is decided over all units together.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.commands.arguments import read_options, share
from data_prep.overlap.filtering import add_filter_arguments, filter_unit, gather, output_folder, print_report
from data_prep.overlap.words import WordHashes, ngram_hashes, words_of
from data_prep.reading.documents import Lines, TextDocument, read_pieces
from data_prep.reading.inputs import Unit, find_inputs, plan_units
from data_prep.reading.places import lines_before
from data_prep.reading.records import ReadOptions
from data_prep.work.executors import map_units
from latentpt.data.errors import DataError

_SHINGLE = 5  # words
_PERMUTATIONS = 128

Removal = dict[int, dict[str, Any]]
"""Number of a record in its unit -> why it is removed."""


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
    threshold = None if arguments.exact_only else arguments.threshold
    report = dedup(
        plan_units(find_inputs(arguments.input), arguments.unit_size),
        read_options(arguments),
        Path(arguments.output),
        threshold,
        arguments.executor,
        arguments.workers,
    )
    print_report(report)


def dedup(
    units: list[Unit],
    options: ReadOptions,
    output: Path,
    threshold: float | None,
    executor: str,
    workers: int,
) -> dict[str, Any]:
    """Write the documents of `units` without duplicates to `output`; return the report.

    `threshold` is the similarity of near duplicates, None looks for exact ones only.
    """
    with output_folder(output) as folder:
        fingerprints = map_units(
            partial(fingerprint, options, threshold is not None), units, executor, workers
        )
        _resolve_places(fingerprints)
        removals: list[Removal] = [{} for _ in units]
        kept = _exact(fingerprints, removals)
        if threshold is not None:
            _near(fingerprints, kept, removals, threshold)
        jobs = [(unit, removal) for unit, removal in zip(units, removals, strict=True)]
        results = map_units(partial(_filter, options, folder), jobs, executor, workers)
        return gather(folder, results, {"threshold": threshold})


Fingerprints = dict[str, Any]


def fingerprint(options: ReadOptions, near: bool, unit: Unit) -> Fingerprints:
    """Of every document of a unit: its record's number, place, sha256 and, if `near`, its MinHash signature."""
    hashes = WordHashes()
    numbers, places, digests, signatures = [], [], [], []
    lines: Lines = []
    for number, (piece, entry) in enumerate(read_pieces(unit.pieces, options, lines)):
        if isinstance(entry, TextDocument):
            numbers.append(number)
            places.append((piece.file, piece.start, entry.line))
            digests.append(entry.digest)
            if near:
                signatures.append(signature(entry.text, hashes))
    return {
        "numbers": np.array(numbers, np.int64),
        "places": places,
        "lines": lines,
        "digests": np.array(digests, "V32"),
        "signatures": np.array(signatures, np.uint32),
    }


def _resolve_places(fingerprints: list[Fingerprints]) -> None:
    """Turn places (file, start, line in the range) into FILE:LINE."""
    before = lines_before(entry for unit in fingerprints for entry in unit["lines"])
    for unit in fingerprints:
        unit["places"] = [f"{file}:{before[file, start] + line}" for file, start, line in unit["places"]]


def signature(text: str, hashes: WordHashes) -> NDArray[np.uint32]:
    """MinHash signature [128] of the runs of five words in `text` (of all its words together, if it has fewer)."""
    words = hashes(words_of(text))
    shingles = np.unique(ngram_hashes(words, min(_SHINGLE, max(1, len(words)))))
    minhash = _minhash_class()(_PERMUTATIONS, hashfunc=int, scheme="affine32")
    minhash.update_batch((shingles & np.uint64(0xFFFFFFFF)).tolist())
    return minhash.hashvalues


def _minhash_class() -> Any:
    try:
        from datasketch import MinHash
    except ImportError:
        raise DataError(
            "near duplicates need the package datasketch; install latentpt[dedup] or say --exact-only"
        ) from None
    return MinHash


def _exact(fingerprints: list[Fingerprints], removals: list[Removal]) -> list[tuple[int, int]]:
    """Mark exact duplicates; return (unit, row) of the other documents in order."""
    units = np.repeat(np.arange(len(fingerprints)), [len(f["numbers"]) for f in fingerprints])
    rows = np.concatenate([np.arange(len(f["numbers"])) for f in fingerprints]).astype(int)
    digests = np.concatenate([f["digests"] for f in fingerprints])
    _, first, group = np.unique(digests.view("S32"), return_index=True, return_inverse=True)
    original = first[group]  # np.unique gives the first of equal ones
    for index in np.flatnonzero(original != np.arange(len(digests))):
        unit, earlier = units[index], original[index]
        removals[unit][int(fingerprints[unit]["numbers"][rows[index]])] = {
            "kind": "exact",
            "duplicate_of": fingerprints[units[earlier]]["places"][rows[earlier]],
        }
    unique = original == np.arange(len(digests))
    return list(zip(units[unique].tolist(), rows[unique].tolist(), strict=True))


def _near(
    fingerprints: list[Fingerprints],
    documents: list[tuple[int, int]],
    removals: list[Removal],
    threshold: float,
) -> None:
    """Mark documents that are similar to one kept before."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)

    def minhash(document: tuple[int, int]) -> Any:
        unit, row = document
        values = fingerprints[unit]["signatures"][row]
        return MinHash(_PERMUTATIONS, hashvalues=values, hashfunc=int, scheme="affine32")

    for unit, row in documents:
        here = minhash((unit, row))
        # The index proposes; the signatures decide. The earliest of the most similar is named.
        similar = [(minhash(other).jaccard(here), other) for other in index.query(here)]
        best = min(
            ((-similarity, other) for similarity, other in similar if similarity >= threshold), default=None
        )
        if best is None:
            index.insert((unit, row), here)
            continue
        other_unit, other_row = best[1]
        removals[unit][int(fingerprints[unit]["numbers"][row])] = {
            "kind": "near",
            "duplicate_of": fingerprints[other_unit]["places"][other_row],
            "similarity": round(-best[0], 3),
        }


def _filter(options: ReadOptions, folder: Path, job: tuple[Unit, Removal]) -> dict[str, Any]:
    unit, removal = job
    return filter_unit(unit, options, folder, lambda number, _: removal.get(number))
