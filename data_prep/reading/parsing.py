"""From a raw record to a document, or to a bad record of a kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.reading.bad import BadRecordError
from data_prep.reading.inputs import Format
from data_prep.reading.long_json import skeleton, unescaped, utf8
from data_prep.reading.records import ReadOptions, Record

_MARK = b"\xef\xbb\xbf"  # some programs begin files with this byte order mark
UNKNOWN_SOURCE = "unknown"


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
    raw = record.raw.removeprefix(_MARK) if record.line == 1 else record.raw
    if format_ not in ("jsonl", "json"):
        return _checked(_decoded(raw), record.source)
    value = _value(raw)
    return _checked(_field(value, options.text_field), _lookup(value, options.source_field))


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError("invalid UTF-8", f"byte {error.start} of the record is not UTF-8") from None


def _value(raw: bytes) -> Any:
    """The JSON value of `raw`. The standard library decides where the fast parser refuses, and says why."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _json(_decoded(raw))


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


def _parse_long(path: Path, source: object, format_: Format, options: ReadOptions) -> Document:
    if format_ not in ("jsonl", "json"):
        return _streamed(lambda: utf8(path, 0, path.stat().st_size), source)
    short, strings = skeleton(path)
    value = _json(_decoded(short))
    text = _field(value, options.text_field)
    if not isinstance(text, str) or not text.startswith("\0"):
        return _checked(text, _lookup(value, options.source_field))
    start, end = strings[int(text[1:])]
    return _streamed(lambda: unescaped(path, start, end), _lookup(value, options.source_field))


def _streamed(pieces: Callable[[], Iterator[str]], source: Any) -> Document:
    """A document whose text is read twice: here to check and to hash it, later to encode it."""
    digest, text_bytes = hashlib.sha256(), 0
    for piece in pieces():
        data = piece.encode("utf-8")
        digest.update(data)
        text_bytes += len(data)
    return Document(pieces(), _name(source), digest.digest(), text_bytes)
