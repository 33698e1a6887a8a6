"""Encoding: chunks of records into tokens, the part of the work that workers do.

A document is encoded by itself, so its tokens do not depend on its neighbours or on the number of workers. Documents
longer than PIECE characters are cut between words and encoded piece by piece, which bounds the memory; a cut is taken
only where the tokenizer gives the same ids for the text around it in one go and in two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.reading.bad import Bad, BadRecordError, bad
from data_prep.reading.inputs import Format
from data_prep.reading.parsing import Document, parse
from data_prep.reading.records import ReadOptions, Record
from latentpt.data.errors import DataError
from latentpt.data.indexed import token_dtype
from latentpt.data.tokenizer import Tokenizer, load_tokenizer

PIECE = 1 << 18  # characters
_AROUND = 64  # characters on either side of a cut on which it is tried
_CANDIDATES = 64  # cuts tried before one is taken as it comes

_NO_IDS = np.empty(0, np.uint16)


@dataclass(frozen=True)
class EncodeOptions:
    """What shapes the tokens of a document and the folder it goes to."""

    tokenizer: str
    """Path of the tokenizer."""
    eod: str | None = None
    """Text of the end-of-document token; None takes the tokenizer's own."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """How records become documents."""
    split_by_source: bool = False
    """One folder for each source."""
    held_out: float = 0.0
    """Share of documents, chosen by the hash of their text, that go to a folder `validation` (the rest to `train`)."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one piece."""

    unit: int
    piece: int
    format: Format
    first: int
    """Number of the first record in its unit."""
    records: list[Record]
    bytes_read: int
    """Bytes of input between the chunk before and the end of this one."""
    piece_end: dict[str, Any] | None = None
    """For the last chunk of a piece: name, bytes and hash of what was read."""
    last: bool = False
    """Whether the unit ends here."""


@dataclass
class EncodedDocument:
    """A document's tokens, end-of-document token included."""

    number: int
    """Number of its record in its unit."""
    route: str
    """Folder it goes to, '' for the output folder itself."""
    source: str
    text_bytes: int
    tokens: NDArray | Path
    """The ids [n], or the file that holds them if the document is long."""

    def num_tokens(self, dtype: np.dtype) -> int:
        """Number of ids."""
        return (
            self.tokens.stat().st_size // dtype.itemsize
            if isinstance(self.tokens, Path)
            else self.tokens.size
        )

    def pieces(self) -> Iterator[NDArray]:
        """The ids in bounded pieces."""
        if not isinstance(self.tokens, Path):
            yield self.tokens
            return
        dtype = np.dtype(self.tokens.suffix[1:])
        with self.tokens.open("rb") as file:
            while data := file.read(1 << 22):
                yield np.frombuffer(data, dtype)


@dataclass
class Encoded:
    """What became of a chunk."""

    chunk: Chunk
    """The chunk without its records."""
    records: int
    """Records it had."""
    documents: list[EncodedDocument] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


class Encoder:
    """Turns chunks into tokens; one lives in every worker."""

    def __init__(self, options: EncodeOptions, tokenizer: Tokenizer | None = None) -> None:
        """Load the tokenizer of `options` unless given; raises DataError when it has no end-of-document token."""
        self.options = options
        self.tokenizer = tokenizer or load_tokenizer(options.tokenizer)
        self.eod_id = end_of_document(self.tokenizer, options.eod)
        self.dtype = token_dtype(self.tokenizer.vocab_size)

    def encode(self, chunk: Chunk, done: dict[str, int]) -> Encoded:
        """Encode a chunk but for the documents that `done` has (route -> last record number already in a shard)."""
        result = Encoded(replace(chunk, records=[]), len(chunk.records))
        short: list[tuple[EncodedDocument, str]] = []
        for number, record in enumerate(chunk.records, start=chunk.first):
            try:
                document = parse(record, chunk.format, self.options.read)
            except BadRecordError as error:
                result.bad.append(bad(record, error))
            else:
                route = self._route(document)
                if number > done.get(route, -1):
                    entry = EncodedDocument(number, route, document.source, document.text_bytes, _NO_IDS)
                    if isinstance(document.text, str):
                        short.append((entry, document.text))
                    elif isinstance(record.raw, Path):
                        entry.tokens = self._encode_long(document.text, record.raw)
                    result.documents.append(entry)
            if isinstance(record.raw, Path):
                record.raw.unlink()
        for (entry, _), ids in zip(short, self._ids([text for _, text in short]), strict=True):
            entry.tokens = ids
        return result

    def _route(self, document: Document) -> str:
        parts = []
        if self.options.held_out:
            share = int.from_bytes(document.digest[:8], "big") / 2**64
            parts.append("validation" if share < self.options.held_out else "train")
        if self.options.split_by_source:
            parts.append(folder_name(document.source))
        return "/".join(parts)

    def _ids(self, texts: list[str]) -> list[NDArray]:
        """Ids of each text with the end-of-document token appended."""
        short = [text for text in texts if len(text) <= PIECE]
        encoded = iter(self.tokenizer.encode_batch(short) if short else [])
        return [
            np.array([*next(encoded), self.eod_id], self.dtype)
            if len(text) <= PIECE
            else np.concatenate([*self._long_ids([text]), np.array([self.eod_id], self.dtype)])
            for text in texts
        ]

    def _long_ids(self, text: Iterable[str]) -> Iterator[NDArray]:
        for piece in cut_text(text, self.tokenizer):
            yield np.array(self.tokenizer.encode(piece), self.dtype)

    def _encode_long(self, text: Iterator[str], raw: Path) -> Path:
        """Encode a streamed document into a file beside its raw record."""
        path = raw.with_suffix("." + self.dtype.name)
        with path.open("wb") as file:
            for ids in self._long_ids(text):
                file.write(ids.tobytes())
            file.write(np.array([self.eod_id], self.dtype).tobytes())
        return path


def folder_name(source: str) -> str:
    """A source's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip(".-") or "unknown"


def end_of_document(tokenizer: Tokenizer, text: str | None) -> int:
    """Id of the end-of-document token: that of `text`, else the tokenizer's own; raises DataError if there is none."""
    if text is None:
        if tokenizer.eod_id is None:
            raise DataError(f"{tokenizer.path}: names no end-of-document token; say which with --eod")
        return tokenizer.eod_id
    found = tokenizer.token_id(text)
    if found is None:
        raise DataError(f"{tokenizer.path}: has no token {text!r} to end documents with")
    return found


def cut_text(pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Regroup a text's `pieces` into ones of at most PIECE characters whose ids, one after another, are the text's."""
    rest = ""
    for piece in pieces:
        rest += piece
        while len(rest) > PIECE + _AROUND:
            end, resume = _cut(rest, tokenizer)
            yield rest[:end]
            rest = rest[resume:]
    if rest:
        yield rest


def _cut(text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where the first piece of `text` ends and the next starts: at, or around, a space between two words."""
    at = PIECE
    for _ in range(_CANDIDATES):
        at = text.rfind(" ", 0, at)
        if at < PIECE // 2:
            break
        if not (text[at - 1].isalnum() and text[at + 1].isalnum()):
            continue
        left, right = text[at - _AROUND : at], text[at : at + _AROUND]
        whole = tokenizer.encode(left + right)
        for skip in (0, 1):  # sentencepiece may put a space of its own before every text
            if tokenizer.encode(left) + tokenizer.encode(right[skip:]) == whole:
                return at, at + skip
    return PIECE, PIECE
