"""Documents of any input, one after another and in memory, for the commands that look at text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.reading.bad import BadRecordError
from data_prep.reading.inputs import Format, Piece, input_size
from data_prep.reading.parsing import Document, parse
from data_prep.reading.records import PieceReader, ReadOptions, Record


def load_text(record: Record, format_: Format, options: ReadOptions) -> tuple[Document, str]:
    """The document of `record` and its whole text; takes away the spool file of a long one. Raises BadRecordError."""
    try:
        document = parse(record, format_, options)
        text = document.text if isinstance(document.text, str) else "".join(document.text)
    finally:
        if isinstance(record.raw, Path):
            record.raw.unlink()
    return document, text


def read_texts(files: Sequence[str], options: ReadOptions) -> Iterator[tuple[Document, str]]:
    """Documents of `files` in order with their texts; bad records are passed over (tokenize reports them)."""
    with tempfile.TemporaryDirectory() as spool:
        for file in files:
            piece = Piece(file, 0, input_size(file))
            for record in PieceReader(piece, options, Path(spool)):
                try:
                    yield load_text(record, piece.format, options)
                except BadRecordError:
                    continue
