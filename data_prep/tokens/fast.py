"""The fast encoder: gigatoken where it reads the tokenizer, held against the reference all the while.

It remembers the ids of every word it has met, which makes it fast and makes it grow; so it is loaded anew when the
process has become too large. Which ids it gives is compared with the reference tokenizer on texts that trip up
tokenizers, on the beginning of every unit and on a sample of what follows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from latentpt.data.errors import DataError
from latentpt.data.tokenizer import Tokenizer

BACKENDS = ("auto", "gigatoken", "reference")
RESIDENT_LIMIT = 220_000_000  # bytes of the process from which the encoder is loaded anew
_LEAST_BETWEEN = 1 << 23  # bytes of text between two loads, so that a large process does not only load
_COMPARED = 4096  # characters of a text that are compared
_COMPARE_EVERY = 1 << 22  # bytes of text
_SHOWN = 80  # characters of a text in a message

PROBES = (
    "Hello, world! It's 3.14159 and 1234567890, isn't it?  Two  spaces.\n\n\tTabs\tand\r\nline ends \n ",
    "naïve café e\u0301 ﬁ Å ÅΩ — “quotes” … 日本語の文章 русский текст العربية עברית हिन्दी ไทย",
    "😀 👩‍👩‍👧 🇩🇪 \u200b\u200d\ufeff\u00a0 \x00\x01\x7f \U0010ffff",
    "def f(x):\n        return {'a': [x ** 2 for _ in range(10)]}  # don't\n\n\n\n    pass",
    "https://example.org/a_b-c?d=e&f=%20 aGVsbG8gd29ybGQ= " + "=" * 40 + "a" * 200 + " " * 100 + "\n" * 30,
    " leading", "trailing ", " ", "\n", "▁x ▁▁", "<s></s><unk><pad><0x0A>",
)  # fmt: skip


class FastEncoder:
    """Texts to ids as the reference gives them, many times faster."""

    def __init__(self, reference: Tokenizer) -> None:
        """Load what `reference` was loaded from; raises ValueError when gigatoken cannot read it."""
        self._reference = reference
        self._content = _without_special_tokens(reference)
        self._since_load = self._since_comparison = 0
        self._load()

    def _load(self) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._encoder: Any = load_hf_json(self._content)
        self._since_load = 0

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of `text`, [n]."""
        self._count(text)
        return self._encoder.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each text."""
        encoded = [self.encode(text) for text in texts]
        if self._since_load > _LEAST_BETWEEN and _resident() > RESIDENT_LIMIT:
            self._load()
        return encoded

    def start_unit(self) -> None:
        """Have the next text compared."""
        self._since_comparison = _COMPARE_EVERY

    def _count(self, text: str) -> None:
        self._since_load += len(text)
        self._since_comparison += len(text)
        if self._since_comparison >= _COMPARE_EVERY:
            self._since_comparison = 0
            self.compare(text[:_COMPARED])

    def compare(self, text: str) -> None:
        """Raise DataError, with the text, when the two tokenizers differ on it."""
        if self._encoder.encode(text).tolist() == self._reference.encode(text):
            return
        raise DataError(
            f"{self._reference.path}: gigatoken gives other ids than its own library for the text "
            f"{_shortest_difference(text, self._differs)!r}; say --backend reference"
        )

    def _differs(self, text: str) -> bool:
        return self._encoder.encode(text).tolist() != self._reference.encode(text)


def _shortest_difference(text: str, differs: Any) -> str:
    """A short part of `text` that `differs` too, found by halving; cut for a message."""
    parts = True
    while parts and len(text) > _SHOWN:
        half = len(text) // 2
        parts = [part for part in (text[:half], text[half:]) if differs(part)]
        text = parts[0] if parts else text
    return text[: 4 * _SHOWN]


def fast_encoder(reference: Tokenizer, backend: str) -> FastEncoder | None:
    """The fast encoder of `reference`, tried on PROBES, or None when `backend` or the tokenizer's kind rule it out.

    Raises DataError when it is asked for and cannot be had, and when its ids differ.
    """
    if backend == "reference":
        return None
    try:
        encoder = FastEncoder(reference)
    except (ImportError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        if backend == "auto":
            return None
        raise DataError(
            f"{reference.path}: gigatoken cannot read it ({error}); say --backend reference"
        ) from None
    for text in PROBES:
        encoder.compare(text)
    return encoder


def _without_special_tokens(reference: Tokenizer) -> str:
    """The tokenizer.json, without the tokens that text must not be read as."""
    content = reference.path.read_bytes()
    if reference.path.suffix == ".model":
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        content = sentencepiece_to_tokenizer_json(content)
    described = orjson.loads(content)
    added = described.get("added_tokens") or []
    described["added_tokens"] = [token for token in added if not token.get("special")]
    return orjson.dumps(described).decode()


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
