"""Reading input: files into raw records, in bounded memory whatever a record's length.

A record is raw bytes (a line of JSON, a JSON value, a text, a column's string) with the line or row where it starts.
A record longer than LONG_RECORD is written to a spool file as it streams by and handed on as that file's path.
What is wrong with a file (a truncated .zst) is an error, or becomes a record too: nothing is dropped silently.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.reading.inputs import TABLES, Piece, open_input
from data_prep.reading.json_values import json_values
from data_prep.reading.streams import DamagedError, HashedReads, inflated, line_start, plain
from data_prep.reading.tables import rows
from latentpt.data.errors import DataError

LONG_RECORD = 8 << 20


class Record(NamedTuple):
    """One raw record."""

    line: int
    """Line (or row of a table) at which it starts, from 1."""
    raw: bytes | Path | None
    """Its bytes, the spool file that holds them, or None for a null in a table."""
    source: object = None
    """Value of the source column, for tables."""
    damage: str = ""
    """What is wrong with the file here; the record is then the unreadable rest."""


@dataclass(frozen=True)
class ReadOptions:
    """What reading needs to know."""

    text_field: str = "text"
    """Field or column that holds the text; a dot goes into nested fields."""
    source_field: str = "meta.pile_set_name"
    """Field or column that names the record's source."""
    separator: str | None = None
    """What separates documents in .txt files; None makes every file one document."""
    allow_damaged: bool = False
    """Whether what can be read of a damaged file is used; otherwise a damaged file is an error."""


class _Spool:
    """Makes spool files for long records, numbered in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def new(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count += 1
        path = self.folder / f"long-{self.count:06d}"
        path.unlink(missing_ok=True)  # left by a start that was killed
        return path


def _separated(blocks: Iterator[bytes], separator: bytes | None, spool: _Spool) -> Iterator[Record]:
    """Records between separators; without a separator everything is one record."""
    line = 1
    pending = bytearray()
    searched = 0  # no separator starts before
    try:
        for block in blocks:
            pending += block
            if separator and pending.find(separator, searched) >= 0:
                *whole, rest = bytes(pending).split(separator)  # from the left, whatever the blocks are
                for raw in whole:
                    yield Record(line, raw if len(raw) <= LONG_RECORD else _spooled(raw, spool))
                    line += raw.count(b"\n") + separator.count(b"\n")
                pending = bytearray(rest)
            searched = max(0, len(pending) - len(separator or b"") + 1)
            if len(pending) > LONG_RECORD:
                path = spool.new()
                newlines, rest = _spool_record(pending, blocks, separator, path)
                yield Record(line, path)
                line += newlines
                pending, searched = bytearray(rest), 0
    except DamagedError as error:
        yield Record(line, bytes(pending), damage=str(error))
        return
    for raw in bytes(pending).split(separator) if separator else [bytes(pending)]:
        yield Record(line, raw)
        line += raw.count(b"\n") + (separator or b"").count(b"\n")


def _spool_record(
    head: bytearray, blocks: Iterator[bytes], separator: bytes | None, path: Path
) -> tuple[int, bytes]:
    """Write a long record that begins with `head` to `path`; return its newlines and what follows its separator."""
    keep = len(separator) - 1 if separator else 0
    newlines = 0
    with path.open("wb") as file:
        pending = bytes(head)
        while True:
            end = pending.find(separator) if separator else -1
            sure = end if end >= 0 else len(pending) - keep
            file.write(pending[:sure])
            newlines += pending.count(b"\n", 0, sure)
            if end >= 0 and separator:
                return newlines + separator.count(b"\n"), pending[end + len(separator) :]
            block = next(blocks, b"")
            if not block:
                file.write(pending[sure:])
                return newlines + pending.count(b"\n", sure), b""
            pending = pending[sure:] + block


def _spooled(raw: bytes, spool: _Spool) -> Path:
    path = spool.new()
    path.write_bytes(raw)
    return path


def _json_file(blocks: Iterator[bytes], spool: _Spool) -> Iterator[Record]:
    """Records of a .json file: lines if its first line is a whole value, else the values of an array or a stream."""
    head = next(blocks, b"").lstrip(b"\xef\xbb\xbf \t\r\n")
    blocks = itertools.chain([head], blocks)
    if not head.startswith(b"[") and _is_json(head.partition(b"\n")[0]):
        return _separated(blocks, b"\n", spool)
    return _values(blocks, head.startswith(b"["), spool)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _values(blocks: Iterator[bytes], array: bool, spool: _Spool) -> Iterator[Record]:
    line = 1  # where the value at hand starts
    pending, newlines = bytearray(), 0
    long: Path | None = None
    try:
        for data, ends in json_values(blocks, array):
            if not pending and not long:
                value = data.lstrip()
                line += data.count(b"\n", 0, len(data) - len(value))
                data = value
            pending += data
            newlines += data.count(b"\n")
            if len(pending) > LONG_RECORD or (long and ends):
                long = long or spool.new()
                with long.open("ab") as file:
                    file.write(pending)
                pending.clear()
            if ends:
                yield Record(line, long or bytes(pending))
                line, newlines, long = line + newlines, 0, None
                pending.clear()
    except (DamagedError, ValueError) as error:
        yield Record(line, long or bytes(pending), damage=str(error))
        return
    if pending.strip() or long:
        yield Record(line, long or bytes(pending))


def _table(piece: Piece, options: ReadOptions, spool: _Spool) -> Iterator[Record]:
    """Rows of a .parquet or .arrow file."""
    row = 1
    try:
        for raw, name in rows(piece, options.text_field, options.source_field):
            yield Record(
                row, _spooled(raw, spool) if raw is not None and len(raw) > LONG_RECORD else raw, name
            )
            row += 1
    except DamagedError as error:
        yield Record(row, b"", damage=str(error))


class PieceReader:
    """Iterates the records of a piece; blank lines are no records.

    Attributes:
        position: bytes of the file read so far, for progress.
        sha256: hash of the piece's bytes, once it was read to the end.
        lines: lines in the piece, once it was read to the end; 0 for pieces that are whole files.
    """

    def __init__(self, piece: Piece, options: ReadOptions, spool: Path) -> None:
        """Read `piece`; long records go to files in the folder `spool`."""
        self.piece, self._options, self._spool = piece, options, _Spool(spool)
        self.position = 0
        self.sha256 = ""
        self.lines = 0
        self.bytes = piece.end - piece.start

    def __iter__(self) -> Iterator[Record]:
        for record in self._table() if self.piece.format in TABLES else self._stream():
            if record.damage and not self._options.allow_damaged:
                raise DataError(
                    f"{self.piece.file}: {record.damage} after record {record.line - 1} of this part; mend it, leave it "
                    "out, or keep what can be read of it with --allow-damaged"
                )
            if record.damage or not isinstance(record.raw, bytes) or record.raw.strip():
                yield record

    def _table(self) -> Iterator[Record]:
        yield from _table(self.piece, self._options, self._spool)
        with open_input(self.piece.file) as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        self.position = self.bytes

    def _stream(self) -> Iterator[Record]:
        with open_input(self.piece.file) as file:
            start, end = self.piece.start, self.piece.end
            if self.piece.is_range:
                start, end = line_start(file, start), line_start(file, end)
                file.seek(start)
            reads = HashedReads(file)
            blocks = (
                inflated(reads.read, self.piece.compression)
                if self.piece.compression
                else plain(reads.read, end - start)
            )
            for record in self._records(blocks):
                self.position = reads.position
                yield record
            self.sha256, self.bytes = reads.sha256.hexdigest(), reads.position
            self.lines = reads.lines if self.piece.is_range else 0

    def _records(self, blocks: Iterator[bytes]) -> Iterator[Record]:
        if self.piece.format == "jsonl":
            return _separated(blocks, b"\n", self._spool)
        if self.piece.format == "json":
            return _json_file(blocks, self._spool)
        separator = self._options.separator
        return _separated(blocks, separator.encode() if separator else None, self._spool)
