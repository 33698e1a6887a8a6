"""Records that are no documents: of which kind, why, and how the quarantine keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from data_prep.reading.inputs import Piece
from data_prep.reading.records import Record

_RAW_KEPT = 1 << 16


class Bad(NamedTuple):
    """A record that is no document."""

    line: int
    """Line or row where it starts."""
    kind: str
    """broken JSON, missing field, not a string, invalid UTF-8, empty, damaged file."""
    reason: str
    """What exactly."""
    raw: bytes
    """The record, its first 64 KiB if longer."""


class BadRecordError(Exception):
    """Raised while a record is parsed; carries kind and reason."""

    def __init__(self, kind: str, reason: str) -> None:
        """`kind` is one of those of Bad."""
        super().__init__(reason)
        self.kind = kind


def bad(record: Record, error: BadRecordError) -> Bad:
    """What the quarantine keeps of a record that could not be parsed."""
    if isinstance(record.raw, Path):
        with record.raw.open("rb") as file:
            raw = file.read(_RAW_KEPT)
    else:
        raw = (record.raw or b"")[:_RAW_KEPT]
    return Bad(record.line, error.kind, str(error), raw)


def quarantine_entry(piece: Piece, bad: Bad) -> dict[str, Any]:
    """A bad record as the quarantine file keeps it, its line still counted from the piece's `start`."""
    return {
        "file": piece.file,
        "start": piece.start,
        "line": bad.line,
        "kind": bad.kind,
        "reason": bad.reason,
        # Bytes that are not UTF-8 become lone surrogates, which JSON escapes: nothing is lost.
        "raw": bad.raw.decode("utf-8", "surrogateescape"),
    }
