"""Chunks: the records of a unit in portions that are sent to whoever works on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.reading.inputs import Format, Unit
from data_prep.reading.records import PieceReader, ReadOptions, Record

CHUNK_BYTES = 1 << 20
CHUNK_RECORDS = 4096


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one piece."""

    piece: int
    """Number of the piece in its unit."""
    format: Format
    first: int
    """Number of the first record in its unit."""
    records: list[Record]
    bytes_read: int
    """Bytes of input between the chunk before and the end of this one."""
    piece_end: dict[str, Any] | None = None
    """For the last chunk of a piece: name, bytes, lines and hash of what was read."""


def unit_chunks(unit: Unit, options: ReadOptions, spool: Path) -> Iterator[Chunk]:
    """The records of a unit in chunks of about a mebibyte; the last chunk of a piece may be empty."""
    number = 0
    for index, piece in enumerate(unit.pieces):
        reader = PieceReader(piece, options, spool / f"piece-{index:06d}")
        position = 0
        for records in _grouped(reader):
            yield Chunk(index, piece.format, number, records, reader.position - position)
            number, position = number + len(records), reader.position
        end = {
            "file": piece.file,
            "start": piece.start,
            "bytes": reader.bytes,
            "lines": reader.lines,
            "sha256": reader.sha256,
        }
        # A long line belongs to the range it starts in; ranges that it covers have read nothing.
        rest = (reader.bytes if piece.is_range else piece.end - piece.start) - position
        yield Chunk(index, piece.format, number, [], rest, end)


def _grouped(reader: Iterable[Record]) -> Iterator[list[Record]]:
    records: list[Record] = []
    size = 0
    for record in reader:
        records.append(record)
        size += len(record.raw) if isinstance(record.raw, bytes) else 0
        if size >= CHUNK_BYTES or len(records) >= CHUNK_RECORDS or isinstance(record.raw, Path):
            yield records
            records, size = [], 0
    if records:
        yield records
