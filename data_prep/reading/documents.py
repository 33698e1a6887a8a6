"""Documents of any input, one after another and in memory, for the commands that look at text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.reading.bad import Bad, BadRecordError, bad
from data_prep.reading.inputs import Piece, input_size
from data_prep.reading.parsing import parse
from data_prep.reading.records import PieceReader, ReadOptions, Record


@dataclass(frozen=True)
class TextDocument:
    """A document in memory and where it came from."""

    piece: Piece
    line: int
    """Line or row in the piece."""
    source: str
    text: str
    digest: bytes
    """sha256 of the text's UTF-8 bytes."""
    text_bytes: int
    raw: bytes | None
    """Its JSON record as it was read; None for other formats."""


def read_documents(files: Sequence[str], options: ReadOptions) -> Iterator[TextDocument]:
    """Documents of `files` in order; bad records are passed over (tokenize reports them)."""
    pieces = [Piece(file, 0, input_size(file)) for file in files]
    return (entry for _, entry in read_pieces(pieces, options) if isinstance(entry, TextDocument))


Lines = list[tuple[str, int, int]]
"""File, start and number of lines of pieces, as `places.lines_before` takes them."""


def read_pieces(
    pieces: Sequence[Piece], options: ReadOptions, lines: Lines | None = None
) -> Iterator[tuple[Piece, TextDocument | Bad]]:
    """Every record of `pieces` in order, as a document or as a bad record; appends each piece's lines to `lines`."""
    with tempfile.TemporaryDirectory() as spool:
        for piece in pieces:
            reader = PieceReader(piece, options, Path(spool))
            for record in reader:
                yield piece, _loaded(piece, record, options)
                if isinstance(record.raw, Path):
                    record.raw.unlink()
            if lines is not None:
                lines.append((piece.file, piece.start, reader.lines))


def _loaded(piece: Piece, record: Record, options: ReadOptions) -> TextDocument | Bad:
    try:
        document = parse(record, piece.format, options)
    except BadRecordError as error:
        return bad(record, error)
    text = document.text if isinstance(document.text, str) else "".join(document.text)
    raw = None
    if piece.format in ("jsonl", "json"):
        raw = record.raw.read_bytes() if isinstance(record.raw, Path) else record.raw
    return TextDocument(piece, record.line, document.source, text, document.digest, document.text_bytes, raw)
