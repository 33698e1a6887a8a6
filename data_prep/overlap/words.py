"""Runs of n words as 64-bit hashes: what near-duplicates and contaminated documents have in common.

Words are runs of letters and digits in lower case, so punctuation, spacing and case make no difference.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W_]+")
_FACTOR = 0x9E3779B97F4A7C15
_BASE = 0xBF58476D1CE4E5B9  # odd; a word is the value of a polynomial in it
_CHARACTERS = 0x110000

Hashes = NDArray[np.uint64]


def words_of(text: str) -> list[str]:
    """The words of `text` in order."""
    return _WORD.findall(text.lower())


def word_hashes(text: str) -> Hashes:
    """Hash of every word of `text`, [words], the same for the same word everywhere."""
    return word_hashes_of_all([text])[0]


def word_hashes_of_all(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash of every word of every text, one text after another, [words], and the number of its text, [words]."""
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer("\n".join(lowered).encode("utf-32-le", "surrogatepass"), np.uint32)
    inside = _in_words()[codes]
    edges = np.flatnonzero(np.diff(inside.view(np.int8), prepend=0, append=0))
    if not edges.size:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    lengths = edges[1::2] - edges[::2]
    first = np.cumsum(lengths) - lengths
    place = np.arange(first[-1] + lengths[-1]) - np.repeat(first, lengths)
    terms = _scrambled(codes[inside].astype(np.uint64)) * _powers(int(lengths.max()))[place]
    hashes = _scrambled(np.add.reduceat(terms, first) + lengths.astype(np.uint64))
    ends = np.cumsum([len(text) + 1 for text in lowered])
    return hashes, np.searchsorted(ends, edges[::2], side="right")


def run_hashes(words: Hashes, n: int) -> Hashes:
    """Hash of every run of `n` words, [words - n + 1], from the words' hashes; empty for fewer words."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    combined = np.zeros(count, np.uint64)
    for offset in range(n):
        combined = combined * np.uint64(_FACTOR) + words[offset : offset + count]
    return combined ^ (combined >> np.uint64(31))


@functools.cache
def _in_words() -> NDArray[np.bool_]:
    """Whether each character is a letter or a digit, as the pattern of `words_of` sees it."""
    return np.fromiter((chr(code).isalnum() for code in range(_CHARACTERS)), bool, _CHARACTERS)


@functools.lru_cache(maxsize=1)
def _table_of_powers(size: int) -> Hashes:
    powers = np.full(size, _BASE, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _powers(count: int) -> Hashes:
    """Powers 0 .. count - 1 of the base, and perhaps more."""
    return _table_of_powers(1 << max(8, (count - 1).bit_length()))


def _scrambled(values: Hashes) -> Hashes:
    values = (values + np.uint64(1)) * np.uint64(_FACTOR)
    return values ^ (values >> np.uint64(29))
