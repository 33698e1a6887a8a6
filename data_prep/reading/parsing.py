"""From a raw record to a document, or to a bad record of a kind."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.reading.inputs import Format, Piece
from data_prep.reading.records import ReadOptions, Record

_BLOCK = 1 << 20
_LONG_STRING = 1 << 16
_RAW_KEPT = 1 << 16
UNKNOWN_SOURCE = "unknown"


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


@dataclass(frozen=True)
class Document:
    """A document: its text, whole or as a stream of pieces, and its source."""

    text: str | Iterator[str]
    source: str
    digest: bytes
    """sha256 of the text's UTF-8 bytes."""
    text_bytes: int
    """Number of those bytes."""


def parse(record: Record, format_: Format, options: ReadOptions) -> Document:
    """The document of `record`; raises BadRecordError."""
    if record.damage:
        raise BadRecordError("damaged file", record.damage)
    if record.raw is None:
        raise BadRecordError("missing field", f"the column {options.text_field!r} is null")
    if isinstance(record.raw, Path):
        return _parse_long(record.raw, record.source, format_, options)
    text = _decoded(record.raw)
    if record.line == 1:
        text = text.removeprefix("\ufeff")  # some programs begin files with this mark
    if format_ not in ("jsonl", "json"):
        return _checked(text, record.source)
    value = _json(text)
    return _checked(_field(value, options.text_field), _lookup(value, options.source_field))


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


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError("invalid UTF-8", f"byte {error.start} of the record is not UTF-8") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("broken JSON", str(error)) from None


def _lookup(value: Any, path: str) -> Any:
    """Value at a dotted `path`, or None; a key that itself contains the dots wins."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _field(value: Any, path: str) -> Any:
    found = _lookup(value, path)
    if found is None:
        keys = f"its keys are {', '.join(map(repr, value))}" if isinstance(value, dict) else "it is no object"
        raise BadRecordError("missing field", f"the record has no {path!r}; {keys}"[:500])
    return found


def _checked(text: Any, source: Any) -> Document:
    if not isinstance(text, str):
        raise BadRecordError("not a string", f"the text is a {type(text).__name__}")
    if not text:
        raise BadRecordError("empty", "the text is empty")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecordError("invalid UTF-8", "the text has a lone surrogate") from None
    return Document(text, _name(source), hashlib.sha256(data).digest(), len(data))


def _name(source: Any) -> str:
    return source if isinstance(source, str) and source else UNKNOWN_SOURCE


# Long records: never in memory as a whole. A pass over the file checks it, the text is then streamed.

_TOKENS = re.compile(  # whole characters and escapes of a JSON string, as many as there are
    r"(?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+"
)
_QUOTE = re.compile(rb'["\\]')


def _parse_long(path: Path, source: object, format_: Format, options: ReadOptions) -> Document:
    if format_ not in ("jsonl", "json"):
        return _streamed(lambda: _utf8(path, 0, path.stat().st_size), source)
    skeleton, strings = _skeleton(path)
    value = _json(_decoded(skeleton))
    text = _field(value, options.text_field)
    if not isinstance(text, str) or not text.startswith("\0"):
        return _checked(text, _lookup(value, options.source_field))
    start, end = strings[int(text[1:])]
    return _streamed(lambda: _unescaped(path, start, end), _lookup(value, options.source_field))


def _streamed(pieces: Callable[[], Iterator[str]], source: Any) -> Document:
    """A document whose text is read twice: here to check and to hash it, later to encode it."""
    digest, text_bytes = hashlib.sha256(), 0
    for piece in pieces():
        data = piece.encode("utf-8")
        digest.update(data)
        text_bytes += len(data)
    return Document(pieces(), _name(source), digest.digest(), text_bytes)


def _utf8(path: Path, start: int, end: int) -> Iterator[str]:
    """Text of bytes [start, end) of a file in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        file.seek(start)
        try:
            while start < end:
                block = file.read(min(_BLOCK, end - start))
                start += len(block)
                if piece := decoder.decode(block, final=start >= end):
                    yield piece
        except UnicodeDecodeError:
            raise BadRecordError("invalid UTF-8", f"bytes near {start} of the record are not UTF-8") from None


def _unescaped(path: Path, start: int, end: int) -> Iterator[str]:
    """Text of the JSON string whose content is bytes [start, end) of a file, in pieces."""
    rest = ""
    for piece in _utf8(path, start, end):
        rest += piece
        whole = _TOKENS.match(rest).end()  # type: ignore[union-attr]  # the pattern matches the empty string
        if whole:
            yield _json(f'"{rest[:whole]}"')
        rest = rest[whole:]
        if len(rest) > 12:  # longer than any escape
            break
    if rest:
        raise BadRecordError("broken JSON", f"the string has the bad escape {rest[:12]!r}")


def _skeleton(path: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The JSON of a file with its long strings replaced by a zero byte and their number, and where those strings are."""
    skeleton = bytearray()
    strings: list[tuple[int, int]] = []
    with path.open("rb") as file:
        at = 0
        for start, end in _string_spans(path):
            if end - start < _LONG_STRING:
                continue
            file.seek(at)
            skeleton += file.read(start - at) + b"\\u0000%d" % len(strings)
            strings.append((start, end))
            at = end
        file.seek(at)
        skeleton += file.read()
    return bytes(skeleton), strings


def _string_spans(path: Path) -> Iterator[tuple[int, int]]:
    """First byte and end of the content of every string in a file of JSON."""
    start = -1  # of the string we are in
    base = at = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            while at < len(block):
                if start < 0:
                    quote = block.find(b'"', at)
                    if quote < 0:
                        at = len(block)
                        break
                    start, at = base + quote + 1, quote + 1
                    continue
                match = _QUOTE.search(block, at)
                if match is None:
                    at = len(block)
                elif match.group() == b"\\":
                    at = match.end() + 1
                else:
                    yield start, base + match.start()
                    start, at = -1, match.end()
            base, at = base + len(block), at - len(block)
