"""Which documents are duplicates of one before them, in memory that does not grow with the corpus.

Documents have numbers in reading order. Keys that are equal are found partition by partition of the range of keys:
first those of whole texts, then the bands of the documents that are left. What comes out are pairs on disk, sorted by
the later document; going through them in order, a document is removed when it is similar to one that was kept.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.overlap.fingerprints import DIGEST, ROW, mapped, read_keys
from data_prep.overlap.signatures import PLACES, Bands
from data_prep.work.executors import Report
from data_prep.work.progress import Tick

PAIR = np.dtype([("later", "<i8"), ("earlier", "<i8"), ("similarity", "<f4")])
REMOVED = np.dtype([("document", "<i8"), ("original", "<i8"), ("similarity", "<f4")])
"""A similarity of 2 says that the texts are equal."""
EXACT = 2.0
_HEADS = 64  # documents of a bucket that the others in it are compared with
_TOGETHER = 1 << 14  # pairs compared at a time
_WINDOW = 1 << 20  # documents decided at a time
_BYTES_A_PARTITION = 1 << 24  # of input; its keys take about as much


@dataclass(frozen=True)
class Corpus:
    """The fingerprints of all units."""

    folders: tuple[str, ...]
    starts: tuple[int, ...]
    """Number of each unit's first document, and of all documents."""

    def unit_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """The unit of each document."""
        return np.searchsorted(np.array(self.starts), documents, side="right") - 1

    def gather(self, name: str, dtype: np.dtype, columns: int, documents: NDArray[np.int64]) -> NDArray:
        """Entries of `documents`, [n] ascending, from the units' files `name`."""
        units = self.unit_of(documents)
        parts = [
            mapped(Path(self.folders[unit]) / f"{name}.bin", dtype, columns)[
                documents[units == unit] - self.starts[unit]
            ]
            for unit in np.unique(units).tolist()
        ]
        return np.concatenate(parts) if parts else np.empty((0, columns) if columns else 0, dtype)

    def keys(self, name: str, partition: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Keys of a partition in ascending order, and the document of each, ascending for equal keys."""
        keys, documents = [], []
        for folder, start in zip(self.folders, self.starts, strict=False):
            found = read_keys(Path(folder), name, partition)
            keys.append(found["key"])
            documents.append(found["row"].astype(np.int64) + start)
        all_keys, all_documents = np.concatenate(keys), np.concatenate(documents)
        order = np.argsort(all_keys, kind="stable")
        return all_keys[order], all_documents[order]

    @functools.cached_property
    def count(self) -> int:
        """All documents."""
        return self.starts[-1]


@dataclass(frozen=True)
class Partition:
    """A range of keys."""

    number: int
    size: int
    """Bytes of input that its keys stand for, about."""


def partitions_of(input_bytes: int) -> list[Partition]:
    """As many ranges of keys as keep each small."""
    count = min(max(1, input_bytes // _BYTES_A_PARTITION), 1024)
    return [Partition(number, input_bytes // count) for number in range(count)]


def exact_pairs(corpus: Corpus, root: Path, partition: Partition, _: int, report: Report) -> dict[str, Any]:
    """Write the documents of a partition whose text came before, each with the first that has it."""
    keys, documents = corpus.keys("exact", partition.number)
    keys, documents = _shared(keys, documents)
    order = np.sort(documents)
    digests = corpus.gather("digests", DIGEST, 0, order)[np.searchsorted(order, documents)].view("S32")
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    earlier = documents[first[group]]  # np.unique gives the first of equal ones
    later = documents != earlier
    pairs = np.empty(int(later.sum()), PAIR)
    pairs["later"], pairs["earlier"], pairs["similarity"] = documents[later], earlier[later], EXACT
    _save(root / f"exact-{partition.number:06d}" / "pairs.npy", pairs)
    report(Tick(partition.size))
    return {"pairs": len(pairs)}


def _shared(
    keys: NDArray[np.uint64], documents: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The entries whose key occurs more than once; `keys` ascend."""
    same = keys[1:] == keys[:-1]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    return keys[shared[: len(keys)]], documents[shared[: len(keys)]]


def _save(path: Path, pairs: NDArray) -> None:
    np.save(path, np.sort(pairs, order=["later", "earlier"]))


def mark_dropped(path: Path, corpus: Corpus, parts: Sequence[Path]) -> None:
    """Write one byte for every document: 1 for those that `parts`, files of pairs, name as later ones."""
    side = path.with_suffix(".tmp")
    with side.open("wb") as file:
        file.truncate(max(1, corpus.count))
    dropped = np.memmap(side, np.uint8)
    for part in parts:
        dropped[np.load(part)["later"]] = 1
    dropped.flush()
    side.replace(path)


def near_pairs(
    corpus: Corpus, bands: Bands, dropped: Path, root: Path, partition: Partition, _: int, report: Report
) -> dict[str, Any]:
    """Write the pairs of documents that meet in a band of a partition and whose signatures agree enough."""
    keys, documents = corpus.keys("bands", partition.number)
    left = np.memmap(dropped, np.uint8, mode="r")[documents] == 0
    keys, documents = _shared(keys[left], documents[left])
    meeting = np.unique(_meetings(keys, documents), axis=0)
    found = [
        _similar(corpus, meeting[at : at + _TOGETHER], bands) for at in range(0, len(meeting), _TOGETHER)
    ]
    pairs = np.concatenate(found) if found else np.empty(0, PAIR)
    _save(root / f"near-{partition.number:06d}" / "pairs.npy", pairs)
    report(Tick(partition.size))
    return {"compared": len(meeting), "pairs": len(pairs)}


def _meetings(keys: NDArray[np.uint64], documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """(later, earlier) of the documents in a bucket: each with every one of the first _HEADS before it. [n, 2]"""
    if not len(keys):
        return np.empty((0, 2), np.int64)
    fresh = np.concatenate([[True], keys[1:] != keys[:-1]])
    first = np.flatnonzero(fresh)[np.cumsum(fresh) - 1]
    place = np.arange(len(keys)) - first
    pairs = []
    for head in range(min(_HEADS, int(place.max()))):
        later = np.flatnonzero(place > head)
        pairs.append(np.stack([documents[later], documents[first[later] + head]], axis=1))
    return np.concatenate(pairs)


def _similar(corpus: Corpus, meeting: NDArray[np.int64], bands: Bands) -> NDArray:
    documents = np.unique(meeting)
    signatures = corpus.gather("signatures", np.dtype("<u4"), PLACES, documents)
    later, earlier = (signatures[np.searchsorted(documents, column)] for column in meeting.T)
    similarity = (later == earlier).mean(axis=1)
    enough = similarity >= bands.accepted
    pairs = np.empty(int(enough.sum()), PAIR)
    pairs["later"], pairs["earlier"] = meeting[enough].T
    pairs["similarity"] = similarity[enough]
    return pairs


def decide(corpus: Corpus, root: Path, partitions: int, near: bool, dropped: Path, output: Path) -> int:
    """Write which documents are removed, [n] of REMOVED in reading order, to `output`; return their number."""
    names = ["exact", "near"] if near else ["exact"]
    parts = [
        np.load(root / f"{name}-{number:06d}" / "pairs.npy", mmap_mode="r")
        for name in names
        for number in range(partitions)
    ]
    parts = [part for part in parts if len(part)]
    gone = np.memmap(dropped, np.uint8, mode="r+")
    side, total = output.with_suffix(".tmp"), 0
    with side.open("wb") as file:
        for start in range(0, corpus.count, _WINDOW):
            pairs = [_between(part, start, start + _WINDOW) for part in parts]
            removed = (
                np.array(list(_decided(np.concatenate(pairs), gone)), REMOVED)
                if pairs
                else np.empty(0, REMOVED)
            )
            removed.tofile(file)
            total += len(removed)
    side.replace(output)
    return total


def _between(pairs: NDArray, start: int, end: int) -> NDArray:
    low, high = np.searchsorted(pairs["later"], [start, end])
    return np.array(pairs[low:high])


def _decided(pairs: NDArray, gone: NDArray[np.uint8]) -> Iterator[tuple[int, int, float]]:
    """Removals among the later documents of `pairs`: the most similar of those kept before, the earliest of them."""
    order = np.lexsort((pairs["earlier"], -pairs["similarity"], pairs["later"]))
    previous = -1
    for later, earlier, similarity in pairs[order].tolist():
        if later != previous and (similarity == EXACT or not gone[earlier]):
            gone[later] = 1
            previous = later
            yield later, earlier, similarity


def place_of(corpus: Corpus, document: int) -> tuple[int, int, int]:
    """Unit, piece and line (in the piece) of a document."""
    unit = int(corpus.unit_of(np.array([document]))[0])
    row = mapped(Path(corpus.folders[unit]) / "rows.bin", ROW)[document - corpus.starts[unit]]
    return unit, int(row["piece"]), int(row["line"])
