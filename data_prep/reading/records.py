"""Reading input: files into raw records, in bounded memory whatever a record's length.

A record is raw bytes (a line of JSON, a JSON value, a text, a column's string) with the line or row where it starts.
A record longer than LONG_RECORD is written to a spool file as it streams by and handed on as that file's path.
What is wrong with a file (a truncated .zst) becomes a record too, so that nothing is dropped silently.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from data_prep.reading.inputs import Piece, open_input
from data_prep.reading.json_values import json_values
from latentpt.data.errors import DataError

LONG_RECORD = 8 << 20
_READ = 1 << 20
_READ_COMPRESSED = 1 << 13  # small, because a compressed byte can grow a thousandfold


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


class HashedReads:
    """Reads a file object and keeps sha256, number and line ends of the bytes read."""

    def __init__(self, file: BinaryIO) -> None:
        """Read `file` from where it stands."""
        self._file = file
        self.sha256 = hashlib.sha256()
        self.position = self.lines = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        data = self._file.read(size)
        self.sha256.update(data)
        self.position += len(data)
        self.lines += data.count(b"\n")
        return data


class DamagedError(Exception):
    """A compressed stream cannot be read further; the message says why."""


def _inflated(read: Callable[[int], bytes], compression: str) -> Iterator[bytes]:
    """Decompressed blocks of all frames of a .zst or .gz stream; raises DamagedError where it breaks off."""

    def fresh():
        return (
            zstandard.ZstdDecompressor().decompressobj() if compression == ".zst" else zlib.decompressobj(31)
        )

    inflater = fresh()
    started = False
    while data := read(_READ_COMPRESSED):
        while data:
            if inflater.eof:
                inflater = fresh()
            started = True
            try:
                block = inflater.decompress(data)
            except (zstandard.ZstdError, zlib.error) as error:
                raise DamagedError(f"the {compression} stream is damaged ({error})") from None
            if block:
                yield block
            data = inflater.unused_data if inflater.eof else b""
    if not started or not inflater.eof:
        raise DamagedError(f"the {compression} stream ends early")


def _plain(read: Callable[[int], bytes], length: int) -> Iterator[bytes]:
    while length > 0 and (block := read(min(_READ, length))):
        length -= len(block)
        yield block


def line_start(file: BinaryIO, position: int) -> int:
    """First byte at or after `position` at which a line starts (the file's end if none does)."""
    if position == 0:
        return 0
    file.seek(position - 1)
    at = position - 1
    while block := file.read(_READ):
        newline = block.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += len(block)
    return at


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
    """Rows of a .parquet or .arrow file, read in small batches."""
    import pyarrow as pa
    import pyarrow.compute as pc

    row = 1
    text, _, _ = options.text_field.partition(".")
    source, _, _ = options.source_field.partition(".")
    for batch in _record_batches(piece, text, source):
        column = _column(batch, options.text_field)
        if column is None:
            raise DataError(
                f"{piece.file}: has no column {options.text_field!r}; its columns are {', '.join(batch.schema.names)}"
            )
        if not (
            pa.types.is_string(column.type)
            or pa.types.is_large_string(column.type)
            or pa.types.is_binary(column.type)
        ):
            raise DataError(f"{piece.file}: column {options.text_field!r} holds {column.type}, not text")
        texts = pc.cast(column, pa.large_binary())
        sources = _column(batch, options.source_field)
        names = sources.to_pylist() if sources is not None else [None] * len(texts)
        for raw, name in zip(texts.to_pylist(), names, strict=True):
            yield Record(
                row, _spooled(raw, spool) if raw is not None and len(raw) > LONG_RECORD else raw, name
            )
            row += 1


def _record_batches(piece: Piece, *columns: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = open_input(piece.file)
    try:
        if piece.format == "parquet":
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ)
            wanted = [name for name in parquet.schema_arrow.names if name in columns]
            yield from parquet.iter_batches(batch_size=256, columns=wanted or None)
            return
        try:
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            yield from pa.ipc.open_stream(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{piece.file}: cannot be read as {piece.format} ({error})") from None
    finally:
        file.close()


def _column(batch, path: str):
    """Column at a dotted path of `batch`, or None."""
    import pyarrow.compute as pc

    name, *nested = path.split(".")
    if path in batch.schema.names:
        return batch.column(path)
    if name not in batch.schema.names:
        return None
    column = batch.column(name)
    for key in nested:
        if not hasattr(column.type, "names") or key not in column.type.names:
            return None
        column = pc.struct_field(column, key)
    return column


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
        if self.piece.format in ("parquet", "arrow"):
            yield from _table(self.piece, self._options, self._spool)
            with open_input(self.piece.file) as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            self.position = self.bytes
            return
        with open_input(self.piece.file) as file:
            start, end = self.piece.start, self.piece.end
            if self.piece.is_range:
                start, end = line_start(file, start), line_start(file, end)
                file.seek(start)
            reads = HashedReads(file)
            blocks = (
                _inflated(reads.read, self.piece.compression)
                if self.piece.compression
                else _plain(reads.read, end - start)
            )
            for record in self._records(blocks):
                self.position = reads.position
                if record.damage or not isinstance(record.raw, bytes) or record.raw.strip():
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
