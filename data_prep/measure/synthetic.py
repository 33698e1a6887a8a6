"""Generated text of any size, for figures that need more than a small corpus has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VOCABULARY = 50_000  # words
_POOL_WORDS = 1_000_000


def synthetic_documents(size: int) -> Iterator[Iterator[str]]:
    """Documents as pieces of text, `size` bytes in all; the middle one has a tenth of them.

    Each is cut at random from a few megabytes of random words, common ones far more often than rare ones.
    """
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(rng.choice(letters, size=n)) for n in rng.integers(2, 10, size=_VOCABULARY)]
    ranks = (rng.pareto(0.7, size=_POOL_WORDS) * 20 % _VOCABULARY).astype(int)
    pool = " ".join([words[rank] for rank in ranks])

    def pieces(length: int) -> Iterator[str]:
        while length > 0:
            start = int(rng.integers(len(pool) // 2))
            text = pool[start : start + min(length, len(pool) // 2)]
            yield text
            length -= len(text)

    half = size * 45 // 100
    for part in (half, 0, half):
        if part == 0:
            yield pieces(size // 10)
        while part > 0:
            length = min(part, int(rng.integers(500, 20_000)))
            yield pieces(length)
            part -= length


def planted_documents(count: int, similarities: tuple[float, ...], pairs: int) -> Iterator[str]:
    """`count` documents of 60 words, none like another, but for `pairs` pairs of 600 words for each similarity.

    The pairs come first, each side after side, similarity after similarity. A changed word breaks five runs of five
    words: with n runs broken on both sides of N the Jaccard similarity is (N - n) / (N + n).
    """
    rng = np.random.default_rng(0)
    for similarity in similarities:
        broken = round(596 * (1 - similarity) / (1 + similarity) / 5)
        for _ in range(pairs):
            words = rng.integers(0, 10**6, size=600)
            other = words.copy()
            other[np.linspace(10, 590, broken).astype(int)] = rng.integers(10**6, 2 * 10**6, size=broken)
            yield from (_text(words), _text(other))
    for _ in range(count - 2 * pairs * len(similarities)):
        yield _text(rng.integers(0, 10**6, size=60))


def _text(words: np.ndarray) -> str:
    return " ".join(f"w{word}" for word in words.tolist())
