"""Fingerprints: of every document what duplicates are found by, on disk, unit by unit.

    rows.bin         ROW: the document's record in the unit and its place
    digests.bin      sha256 of its text
    signatures.bin   its signature, uint32 [128]                       (near duplicates only)
    exact.bin        KEY: a part of the hash and the row, sorted by the hash's first bits
    bands.bin        KEY: the bands of the signatures, likewise        (near duplicates only)

Keys go to disk in sorted runs, so that a process reads one range of all keys and nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.overlap.signatures import PLACES, Bands, Signatures, signatures_of
from data_prep.reading.bad import BadRecordError
from data_prep.reading.chunks import Chunk, unit_chunks
from data_prep.reading.documents import load_text
from data_prep.reading.inputs import Unit
from data_prep.reading.records import ReadOptions
from data_prep.work.executors import Report, chunk_results
from data_prep.work.progress import Tick

ROW = np.dtype([("number", "<i8"), ("piece", "<i4"), ("line", "<i8")])
KEY = np.dtype([("key", "<u8"), ("row", "<u4")])
DIGEST = np.dtype("V32")
_RUN_KEYS = 1 << 20  # keys sorted at a time

Result = dict[str, Any]


@dataclass
class Fingerprints:
    """Those of a chunk."""

    chunk: Chunk
    rows: NDArray
    digests: NDArray
    signatures: Signatures
    has_words: NDArray[np.bool_]
    records: int
    text_bytes: int


@dataclass(frozen=True)
class Fingerprinter:
    """Makes the fingerprints of chunks; one lives in every worker."""

    options: ReadOptions
    near: bool

    def __call__(self, chunk: Chunk) -> Fingerprints:
        """Fingerprints of the documents of a chunk; bad records have none."""
        rows, digests, texts, text_bytes = [], [], [], 0
        for number, record in enumerate(chunk.records, start=chunk.first):
            try:
                document, text = load_text(record, chunk.format, self.options)
            except BadRecordError:
                continue
            rows.append((number, chunk.piece, record.line))
            digests.append(document.digest)
            text_bytes += document.text_bytes
            if self.near:
                texts.append(text)
        signatures, has_words = (
            signatures_of(texts) if texts else (np.empty((0, PLACES), np.uint32), np.empty(0, bool))
        )
        records = len(chunk.records)
        return Fingerprints(
            replace(chunk, records=[]),
            np.array(rows, ROW),
            np.array(digests, DIGEST),
            signatures,
            has_words,
            records,
            text_bytes,
        )


class _KeyRuns:
    """Keys of a unit, written in sorted runs with the place of every partition's part of each."""

    def __init__(self, folder: Path, name: str, partitions: int) -> None:
        self._path, self._partitions = folder / f"{name}-parts.npy", partitions
        self._file = (folder / f"{name}.bin").open("wb")
        self._waiting: list[NDArray] = []
        self._count = self._written = 0
        self._bounds: list[NDArray] = []

    def add(self, keys: NDArray[np.uint64], rows: NDArray) -> None:
        entries = np.empty(len(keys), KEY)
        entries["key"], entries["row"] = keys, rows
        self._waiting.append(entries)
        self._count += len(entries)
        if self._count >= _RUN_KEYS:
            self._flush()

    def _flush(self) -> None:
        if not self._count:
            return
        entries = np.concatenate(self._waiting)
        entries = entries[np.argsort(entries["key"], kind="stable")]
        edges = partition_edges(self._partitions)
        bounds = np.searchsorted(entries["key"], edges) if len(edges) else np.empty(0, np.int64)
        self._bounds.append(self._written + np.concatenate([[0], bounds, [len(entries)]]))
        entries.tofile(self._file)
        self._written += len(entries)
        self._waiting, self._count = [], 0

    def close(self) -> None:
        self._flush()
        self._file.close()
        np.save(self._path, np.array(self._bounds, np.int64).reshape(-1, self._partitions + 1))


def partition_edges(partitions: int) -> NDArray[np.uint64]:
    """First key of every partition but the first."""
    return np.array([(2**64 * i) // partitions for i in range(1, partitions)], np.uint64)


def read_keys(folder: Path, name: str, partition: int) -> NDArray:
    """The keys of a partition, [n] of KEY, of the unit whose fingerprints lie in `folder`; rows ascend for equal keys."""
    bounds = np.load(folder / f"{name}-parts.npy")
    with (folder / f"{name}.bin").open("rb") as file:
        parts = []
        for start, end in bounds[:, partition : partition + 2].tolist():
            file.seek(start * KEY.itemsize)
            parts.append(np.fromfile(file, KEY, end - start))
    return np.concatenate(parts) if parts else np.empty(0, KEY)


def mapped(path: Path, dtype: np.dtype, columns: int = 0) -> NDArray:
    """An array file, mapped; an empty file cannot be."""
    if not path.stat().st_size:
        return np.empty((0, columns) if columns else 0, dtype)
    array = np.memmap(path, dtype, mode="r")
    return array.reshape(-1, columns) if columns else array


def fingerprint_unit(
    options: ReadOptions,
    bands: Bands | None,
    partitions: int,
    root: Path,
    unit: Unit,
    helpers: int,
    report: Report,
) -> Result:
    """Write the fingerprints of a unit into `root`/unit-N; return their number and the lines of its pieces."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # one thread a worker
    folder = root / f"unit-{unit.index:06d}"
    count, lines = 0, []
    exact = _KeyRuns(folder, "exact", partitions)
    near = _KeyRuns(folder, "bands", partitions) if bands else None
    make = _Make(Fingerprinter(options, bands is not None))
    files: list[BinaryIO] = [
        (folder / f"{name}.bin").open("wb") for name in ("rows", "digests", "signatures")
    ]
    try:
        for made in chunk_results(make, unit_chunks(unit, options, folder / "spool"), helpers):
            for file, array in zip(files, (made.rows, made.digests, made.signatures), strict=True):
                array.tofile(file)
            rows = np.arange(count, count + len(made.rows))
            exact.add(np.frombuffer(made.digests.tobytes(), "<u8").reshape(-1, 4)[:, 0], rows)
            if bands and near:
                keys = bands.keys(made.signatures[made.has_words])
                near.add(keys.ravel(), np.repeat(rows[made.has_words], bands.count))
            count += len(rows)
            if end := made.chunk.piece_end:
                lines.append([end["file"], end["start"], end["lines"]])
            report(Tick(made.chunk.bytes_read, made.records, len(rows), made.text_bytes))
    finally:
        for file in files:
            file.close()
        exact.close()
        if near:
            near.close()
    return {"documents": count, "lines": lines}


@dataclass(frozen=True)
class _Make:
    """Gives what it holds: how a ready object goes to helpers."""

    held: Any

    def __call__(self) -> Any:
        return self.held
