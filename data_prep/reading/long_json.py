"""Long records: never in memory as a whole. A pass over the file checks it, the text is then streamed.

No JSON library hands out a string in pieces, so the long strings of a record are found here and the rest, its skeleton,
is parsed as usual.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.reading.bad import BadRecordError

_BLOCK = 1 << 20
_LONG_STRING = 1 << 16

_TOKENS = re.compile(  # whole characters and escapes of a JSON string, as many as there are
    r"(?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+"
)
_QUOTE = re.compile(rb'["\\]')


def utf8(path: Path, start: int, end: int) -> Iterator[str]:
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


def unescaped(path: Path, start: int, end: int) -> Iterator[str]:
    """Text of the JSON string whose content is bytes [start, end) of a file, in pieces."""
    rest = ""
    for piece in utf8(path, start, end):
        rest += piece
        whole = _TOKENS.match(rest).end()  # type: ignore[union-attr]  # the pattern matches the empty string
        if whole:
            try:
                yield json.loads(f'"{rest[:whole]}"')
            except ValueError as error:
                raise BadRecordError("broken JSON", str(error)) from None
        rest = rest[whole:]
        if len(rest) > 12:  # longer than any escape
            break
    if rest:
        raise BadRecordError("broken JSON", f"the string has the bad escape {rest[:12]!r}")


def skeleton(path: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The JSON of a file with its long strings replaced by a zero byte and their number, and where those strings are."""
    short = bytearray()
    strings: list[tuple[int, int]] = []
    with path.open("rb") as file:
        at = 0
        for start, end in _string_spans(path):
            if end - start < _LONG_STRING:
                continue
            file.seek(at)
            short += file.read(start - at) + b"\\u0000%d" % len(strings)
            strings.append((start, end))
            at = end
        file.seek(at)
        short += file.read()
    return bytes(short), strings


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
