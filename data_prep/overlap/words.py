"""Runs of n words as 64-bit hashes: what near-duplicates and contaminated documents have in common.

Words are runs of letters and digits in lower case, so punctuation, spacing and case make no difference.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W_]+")
_FACTOR = 0x9E3779B97F4A7C15


class WordHashes:
    """Hashes of words, remembered: a corpus has few distinct ones."""

    def __init__(self, remember: int = 1_000_000) -> None:
        """Keep at most `remember` words."""
        self._known: dict[str, int] = {}
        self._limit = remember

    def __call__(self, words: list[str]) -> NDArray[np.uint64]:
        """Hash [n] of every word."""
        known = self._known
        if len(known) > self._limit:
            known.clear()
        for word in words:
            if word not in known:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                known[word] = int.from_bytes(digest, "little")
        return np.fromiter((known[word] for word in words), np.uint64, len(words))


def words_of(text: str) -> list[str]:
    """The words of `text` in order."""
    return _WORD.findall(text.lower())


def ngram_hashes(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hash of every run of `n` words, [words - n + 1], from the words' hashes; empty for fewer words."""
    count = len(hashes) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    combined = np.zeros(count, np.uint64)
    for offset in range(n):
        combined = combined * np.uint64(_FACTOR) + hashes[offset : offset + count]
    return combined ^ (combined >> np.uint64(31))
