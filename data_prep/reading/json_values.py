"""Splitting a stream of JSON into its values without parsing them: array elements, or values one after another.

Only quotes, brackets and commas matter for where a value ends; whether it is well formed is decided when it is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


class JsonSplitter:
    """Finds the ends of values in blocks fed one after another.

    In array mode the values are the elements of one top-level array; otherwise they are the top-level values.
    """

    def __init__(self, array: bool) -> None:
        """`array` says whether the stream is one array, whose opening bracket is the first byte fed."""
        self._array = array
        self._depth = 0
        self._in_string = False
        self._skip = 0
        self.finished = False

    def ends(self, block: bytes) -> Iterator[tuple[int, int]]:
        """(end, resume) of every value that ends in `block`: its bytes stop before `end`, the next start at `resume`."""
        at, self._skip = self._skip, 0
        base = 1 if self._array else 0
        while at < len(block):
            match = (_INSIDE if self._in_string else _OUTSIDE).search(block, at)
            if match is None:
                return
            at, mark = match.end(), match.group()
            if mark == b"\\":
                at += 1  # the escaped character, perhaps in the next block
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark in b"[{":
                self._depth += 1
                if self._array and self._depth == 1:
                    yield at - 1, at
            elif mark in b"]}":
                self._depth -= 1
                if self._array and self._depth == 0:
                    self.finished = True
                    yield at - 1, at
                elif not self._array and self._depth == 0:
                    yield at, at
            elif self._depth == base and self._array:
                yield at - 1, at
        self._skip = max(0, at - len(block))


def json_values(blocks: Iterator[bytes], array: bool) -> Iterator[tuple[bytes, bool]]:
    """Pieces of the values in `blocks` as (bytes, whether the value ends here); separators are left out.

    Raises ValueError at the end when an array is not closed or something follows it.
    """
    splitter = JsonSplitter(array)
    for block in blocks:
        at = 0
        if splitter.finished and block.strip():
            raise ValueError("something follows the closing bracket of the array")
        for end, resume in splitter.ends(block):
            yield block[at:end], True
            at = resume
        yield block[at:], False
    if array and not splitter.finished:
        raise ValueError("the array is not closed")
