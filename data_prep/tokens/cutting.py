"""Cutting a long text where its ids are the same in one go and in two, which bounds the memory of encoding it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

PIECE = 1 << 18  # characters
_AROUND = 64  # characters on either side of a cut on which it is tried
_CANDIDATES = 64  # cuts tried before more text is taken in
_TAIL = 4096  # characters in which there is white space as a rule

_EDGE = re.compile(r"(?<=\S)\s")

Encode = Callable[[str], Sequence[int]]


def cut_text(pieces: Iterable[str], encode: Encode) -> Iterator[str]:
    """Regroup a text's `pieces` into ones of about PIECE characters whose ids, one after another, are the text's.

    A text that has no such place, one long word, is not cut.
    """
    rest = ""
    wanted = PIECE
    for piece in pieces:
        rest += piece
        while len(rest) > wanted + _AROUND:
            cut = _cut(rest, wanted, encode)
            if cut is None:
                wanted *= 2
                continue
            end, resume = cut
            yield rest[:end]
            rest, wanted = rest[resume:], PIECE
    if rest:
        yield rest


def _cut(text: str, most: int, encode: Encode) -> tuple[int, int] | None:
    """Where the first piece of `text` ends and the next starts: where white space begins in its first `most`."""
    edges = [match.start() for match in _EDGE.finditer(text, most - _TAIL, most)] if most > 2 * _TAIL else []
    edges = edges or [match.start() for match in _EDGE.finditer(text, most // 2, most)]
    for at in reversed(edges[-_CANDIDATES:]):
        left, right = text[at - _AROUND : at], text[at : at + _AROUND]
        whole = list(encode(left + right))
        for skip in (0, 1):  # sentencepiece may put a space of its own before every text
            if [*encode(left), *encode(right[skip:])] == whole:
                return at, at + skip
    return None
