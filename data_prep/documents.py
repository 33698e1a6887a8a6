"""Documents of any input, one after another, for the commands that look at text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.inputs import Piece, input_size
from data_prep.reading import PieceReader, ReadOptions
from data_prep.records import BadRecordError, parse


@dataclass(frozen=True)
class TextDocument:
    """A document in memory and where it came from."""

    file: str
    line: int
    source: str
    text: str
    digest: bytes
    """sha256 of the text's UTF-8 bytes."""
    text_bytes: int


def read_documents(files: Sequence[str], options: ReadOptions) -> Iterator[TextDocument]:
    """Documents of `files` in order; bad records are passed over (tokenize reports them)."""
    with tempfile.TemporaryDirectory() as spool:
        for file in files:
            piece = Piece(file, 0, input_size(file))
            for record in PieceReader(piece, options, Path(spool)):
                try:
                    document = parse(record, piece.format, options)
                except BadRecordError:
                    continue
                text = document.text if isinstance(document.text, str) else "".join(document.text)
                yield TextDocument(
                    file, record.line, document.source, text, document.digest, document.text_bytes
                )
                if isinstance(record.raw, Path):
                    record.raw.unlink()
