"""Encoding: chunks of records into tokens, the part of the work that workers do.

A document is encoded by itself, so its tokens do not depend on its neighbours or on the number of workers. Long ones
are cut and encoded piece by piece.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.reading.bad import Bad, BadRecordError, bad
from data_prep.reading.chunks import Chunk
from data_prep.reading.parsing import Document, parse
from data_prep.reading.records import ReadOptions
from data_prep.tokens import cutting
from data_prep.tokens.fast import fast_encoder
from latentpt.data.errors import DataError
from latentpt.data.indexed import token_dtype
from latentpt.data.tokenizer import Tokenizer, load_tokenizer

Work = tuple[Chunk, dict[str, int]]
"""A chunk, and for each route the last record number of its unit that is in a finished shard."""

_NO_IDS = np.empty(0, np.uint16)


@dataclass(frozen=True)
class EncodeOptions:
    """What shapes the tokens of a document and the folder it goes to."""

    tokenizer: str
    """Path of the tokenizer."""
    eod: str | None = None
    """Text of the end-of-document token; None takes the tokenizer's own."""
    bos: str | None = None
    """Text of a token that starts every document; None starts them with their text."""
    backend: str = "auto"
    """Which encoder: one of `fast.BACKENDS`; the ids are the same."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """How records become documents."""
    split_by_source: bool = False
    """One folder for each source."""
    held_out: float = 0.0
    """Share of documents, chosen by the hash of their text, that go to a folder `validation` (the rest to `train`)."""


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

    def __init__(self, options: EncodeOptions) -> None:
        """Load the tokenizer of `options`; raises DataError when it has no end-of-document token."""
        self.options = options
        self.tokenizer = load_tokenizer(options.tokenizer)
        self.fast = fast_encoder(self.tokenizer, options.backend)
        self.eod_id = end_of_document(self.tokenizer, options.eod)
        self.bos = [] if options.bos is None else [token_id(self.tokenizer, options.bos, "--bos")]
        self.dtype = token_dtype(self.tokenizer.vocab_size)

    def __call__(self, work: Work) -> Encoded:
        """Encode a chunk but for the documents that are in a shard already."""
        chunk, done = work
        result = Encoded(replace(chunk, records=[]), len(chunk.records))
        if self.fast and chunk.first == 0:
            self.fast.start_unit()
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

    def _encode(self, text: str) -> Sequence[int] | NDArray:
        return self.fast.encode(text) if self.fast else self.tokenizer.encode(text)

    def _ids(self, texts: list[str]) -> list[NDArray]:
        """Ids of each text between the start and end tokens."""
        short = [text for text in texts if len(text) <= cutting.PIECE]
        encoded = iter((self.fast or self.tokenizer).encode_batch(short))
        return [
            self._framed([next(encoded)] if len(text) <= cutting.PIECE else list(self._long_ids([text])))
            for text in texts
        ]

    def _framed(self, pieces: Sequence[Sequence[int] | NDArray]) -> NDArray:
        """The ids of a document, [n], from those of its pieces."""
        framed = np.empty(len(self.bos) + sum(map(len, pieces)) + 1, self.dtype)
        at = len(self.bos)
        framed[:at] = self.bos
        for ids in pieces:
            framed[at : at + len(ids)] = ids
            at += len(ids)
        framed[at] = self.eod_id
        return framed

    def _long_ids(self, text: Iterable[str]) -> Iterator[NDArray]:
        for piece in cutting.cut_text(text, self._encode):
            yield np.asarray(self._encode(piece)).astype(self.dtype)

    def _encode_long(self, text: Iterator[str], raw: Path) -> Path:
        """Encode a streamed document into a file beside its raw record."""
        path = raw.with_suffix("." + self.dtype.name)
        with path.open("wb") as file:
            file.write(np.array(self.bos, self.dtype).tobytes())
            for ids in self._long_ids(text):
                file.write(ids.tobytes())
            file.write(np.array([self.eod_id], self.dtype).tobytes())
        return path


@functools.lru_cache(maxsize=1)
def encoder_of(options: EncodeOptions) -> Encoder:
    """The encoder of this process, kept from unit to unit."""
    return Encoder(options)


def folder_name(source: str) -> str:
    """A source's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip(".-") or "unknown"


def end_of_document(tokenizer: Tokenizer, text: str | None) -> int:
    """Id of the end-of-document token: that of `text`, else the tokenizer's own; raises DataError if there is none."""
    if text is None:
        if tokenizer.eod_id is None:
            raise DataError(f"{tokenizer.path}: names no end-of-document token; say which with --eod")
        return tokenizer.eod_id
    return token_id(tokenizer, text, "--eod")


def token_id(tokenizer: Tokenizer, token: str, option: str) -> int:
    """Id of `token`, which `option` named; raises DataError if there is none."""
    found = tokenizer.token_id(token)
    if found is None:
        raise DataError(f"{tokenizer.path}: has no token {token!r}, which {option} names")
    return found
