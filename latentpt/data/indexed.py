"""The shard format: Megatron / GPT-NeoX / Pythia .bin + .idx pairs (MMIDIDX, version 1), read and written.

    NAME.bin   token ids back to back, little endian, no header
    NAME.idx   9s magic | u64 version = 1 | u8 dtype code | u64 n sequences | u64 m entries of the document index
               | i32[n] sequence lengths (tokens) | i64[n] byte offsets into .bin | i64[m] document index
               | i8[n] sequence modes (Megatron multimodal only, ignored)

The document index lists the sequence at which each document starts, first 0 and last n. Every size and every entry is
checked when a shard is opened, so a damaged pair is refused then and not in mid-training. Samples are read from the open
file and not from a map of it: a file that shrinks under a map ends the process without a word (SIGBUS).
Writing goes to side files; the .idx appears last and marks the pair as complete.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import mmap
import os
import secrets
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentpt.data.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Codes 6 and 7 are floats, and Megatron and GPT-NeoX disagree which is which; tokens never need them.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
MAX_DOCUMENT_TOKENS = 2**31 - 1
_ENTRIES = 1 << 20  # index entries handled at a time: bounded memory whatever the shard


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest dtype of the format's usual two that holds ids 0 .. vocab_size - 1: uint16, else int32."""
    return np.dtype(np.uint16) if vocab_size <= 2**16 else np.dtype(np.int32)


def _spans(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ENTRIES, count)) for start in range(0, count, _ENTRIES))


def _map(path: Path) -> mmap.mmap | bytes:
    """Map a whole file for reading; an empty file cannot be mapped and is empty bytes."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise _unopened(path, error) from None


def _unopened(path: Path, error: OSError) -> DataError:
    hint = "; raise the limit of open files (ulimit -n)" if error.errno == errno.EMFILE else ""
    return DataError(f"{path}: cannot be opened ({error.strerror}){hint}")


class Index:
    """An .idx file, checked by itself. It is mapped while it is read and not longer: a run may have thousands.

    Attributes:
        dtype: type of the ids in the .bin.
        num_sequences, num_documents: entries of the index.
        num_tokens: what the .bin must hold.

    Raises DataError, naming the file and the reason, for a file that is missing, damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        """Read the .idx file `path`."""
        self.idx_path = path
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; a shard is a .bin and an .idx of the same name")
        index = _map(path)
        self.dtype, self.num_sequences, self._entries = self._read_header(index)
        lengths, offsets, documents = self._tables(index)
        self.num_tokens = self._check_sequences(lengths, offsets)
        # Written without document boundaries (Pythia's preshuffled data): every sequence stands for itself.
        self._has_documents = documents.size > 1 or bool((documents != 0).any())
        self.num_documents = documents.size - 1 if self._has_documents else self.num_sequences
        if self._has_documents:
            self._check_documents(documents)

    def _tables(
        self, index: mmap.mmap | bytes
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Lengths [num_sequences], offsets [num_sequences] and the document index [entries], mapped."""
        n, m = self.num_sequences, self._entries
        return (
            np.frombuffer(index, "<i4", n, HEADER.size),
            np.frombuffer(index, "<i8", n, HEADER.size + 4 * n),
            np.frombuffer(index, "<i8", m, HEADER.size + 12 * n),
        )

    def _refuse(self, reason: str) -> DataError:
        return DataError(f"{self.idx_path}: {reason}")

    def _read_header(self, index: mmap.mmap | bytes) -> tuple[np.dtype, int, int]:
        if index[: len(OLD_MAGIC)] == OLD_MAGIC:
            raise self._refuse(
                "is of the old TNTIDX format; preprocess the data with the 'mmap' implementation"
            )
        if len(index) < HEADER.size:
            raise self._refuse(f"is {len(index)} bytes long, shorter than the header of {HEADER.size} bytes")
        magic, version, code, n, m = HEADER.unpack(index[: HEADER.size])
        if magic != MAGIC:
            raise self._refuse("does not start with MMIDIDX; it is not the index of a Megatron shard")
        if version != 1:
            raise self._refuse(f"has format version {version}; only version 1 is known")
        if code not in DTYPES:
            raise self._refuse(f"has dtype code {code}; token files have one of {sorted(DTYPES)}")
        expected = HEADER.size + 12 * n + 8 * m
        if len(index) not in (expected, expected + n):
            raise self._refuse(
                f"is {len(index)} bytes long, but {n} sequences and {m} document entries take {expected}; "
                "the file is damaged or truncated"
            )
        return np.dtype(DTYPES[code]), n, m

    def _check_sequences(self, all_lengths: NDArray[np.int32], offsets: NDArray[np.int64]) -> int:
        """Check that sequences lie back to back; return the number of tokens."""
        total = 0
        for span in _spans(self.num_sequences):
            lengths = all_lengths[span].astype(np.int64)
            if lengths.min() < 0:
                raise self._refuse(f"sequence {span.start + int(lengths.argmin())} has a negative length")
            ends = total + np.cumsum(lengths)
            wrong = np.flatnonzero(offsets[span] != (ends - lengths) * self.dtype.itemsize)
            if wrong.size:
                raise self._refuse(
                    f"the offset of sequence {span.start + int(wrong[0])} is not the end of the one before it"
                )
            total = int(ends[-1])
        return total

    def _check_documents(self, index: NDArray[np.int64]) -> None:
        n = self.num_sequences
        if index[0] != 0 or index[-1] != n:
            raise self._refuse(
                f"its document index runs from {index[0]} to {index[-1]} instead of from 0 to {n}"
            )
        if any((np.diff(index[span.start : span.stop + 1]) < 0).any() for span in _spans(index.size)):
            raise self._refuse("its document index is not in ascending order")

    def check_bin_size(self, path: Path, size: int) -> None:
        """Raise DataError unless `size` bytes, of `path`, are what the index describes."""
        expected = self.num_tokens * self.dtype.itemsize
        if size != expected:
            raise DataError(
                f"{path}: is {size} bytes long, but {self.idx_path.name} describes {self.num_tokens} tokens "
                f"of {self.dtype} = {expected} bytes; the file is damaged or truncated"
            )

    def document_spans(self) -> Iterator[tuple[int, int]]:
        """First token and end of every document, in order."""
        lengths, _, documents = self._tables(_map(self.idx_path))
        start = 0
        for span in _spans(self.num_documents):
            bounds = (
                documents[span.start : span.stop + 1]
                if self._has_documents
                else np.arange(span.start, span.stop + 1)
            )
            sequences = lengths[bounds[0] : bounds[-1]].astype(np.int64)
            ends = start + np.concatenate([[0], np.cumsum(sequences)])[bounds[1:] - bounds[0]]
            for end in ends.tolist():
                yield start, end
                start = end


class Shard(Index):
    """A .bin/.idx pair, checked. The .bin stays open: deleting or replacing it by another file changes nothing for a reader.

    Raises DataError as Index does, and for a .bin of another size than the .idx describes.
    """

    def __init__(self, path: str | Path, random: bool = False) -> None:
        """Open `path`, given as NAME, NAME.bin or NAME.idx; `random` says that it will not be read in order."""
        self.prefix = shard_prefix(path)
        self.bin_path, idx_path = bin_and_idx(self.prefix)
        if not self.bin_path.is_file():
            raise DataError(
                f"{self.bin_path}: there is no such file; a shard is a .bin and an .idx of the same name"
            )
        super().__init__(idx_path)
        try:
            self._file = os.open(self.bin_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unopened(self.bin_path, error) from None
        weakref.finalize(self, os.close, self._file)
        self.check_bin_size(self.bin_path, os.fstat(self._file).st_size)
        if random and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._file, 0, 0, os.POSIX_FADV_RANDOM
            )  # else megabytes are read around every sample

    @functools.cached_property
    def tokens(self) -> NDArray:
        """Every id of the shard, [num_tokens], in the dtype of the file, mapped."""
        content = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) if self.num_tokens else b""
        return np.frombuffer(content, self.dtype.newbyteorder("<"), self.num_tokens)

    def read(self, first: int, count: int) -> NDArray:
        """Ids first .. first + count - 1, [count], in the dtype of the file; raises DataError where they are gone."""
        ids = np.empty(count, self.dtype.newbyteorder("<"))
        try:
            found = os.preadv(self._file, [ids.data], first * self.dtype.itemsize)
        except OSError as error:
            raise DataError(
                f"{self.bin_path}: cannot be read at token {first} ({error.strerror})", of_one_rank=True
            ) from None
        if found != ids.nbytes:
            raise DataError(
                f"{self.bin_path}: has become shorter while it was read, it ends before token {first + count} of "
                f"{self.num_tokens}; write it again and start the same command",
                of_one_rank=True,
            )
        return ids

    def documents(self) -> Iterator[NDArray]:
        """Every document's tokens in order, each a view of the mapped file."""
        return (self.tokens[start:end] for start, end in self.document_spans())


@dataclass(frozen=True)
class ShardInfo:
    """What was written: the numbers a manifest keeps of one shard."""

    name: str
    """Name of the pair without suffix."""
    documents: int
    """Documents in it."""
    tokens: int
    """Tokens in it."""
    bin_sha256: str
    """Hash of the .bin file."""
    idx_sha256: str
    """Hash of the .idx file."""


class ShardWriter:
    """Writes one shard in bounded memory: lengths go to a side file, documents may come in pieces.

    Used as a context manager it keeps the pair only if the block ends well; otherwise nothing is left behind.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype | type) -> None:
        """Start the pair `prefix`.bin and `prefix`.idx with token ids of `dtype`."""
        self.prefix = shard_prefix(prefix)
        self.dtype = np.dtype(dtype)
        if self.dtype not in CODES:
            raise DataError(f"{self.prefix}: {self.dtype} is no token dtype; use uint16 or int32")
        self.bin_path, self.idx_path = bin_and_idx(self.prefix)
        mark = secrets.token_hex(4)  # two writers of one pair, after a lost worker, must not share side files
        self._side = {
            kind: self.prefix.with_name(f"{self.prefix.name}.{kind}.{mark}.tmp")
            for kind in ("bin", "lengths", "idx")
        }
        self._tokens = self._side["bin"].open("wb")
        self._lengths = self._side["lengths"].open("wb")
        self._hash = hashlib.sha256()
        self._limits = np.iinfo(self.dtype)
        self.num_tokens = self.num_documents = self._pending = 0

    def write(self, tokens: ArrayLike) -> None:
        """Append a piece [n] of the current document; raises DataError for an id that the dtype cannot hold."""
        ids = np.asarray(tokens)
        if ids.dtype != self.dtype:
            if ids.size and (int(ids.min()) < self._limits.min or int(ids.max()) > self._limits.max):
                worst = max(int(ids.max()), int(ids.min()), key=abs)
                raise DataError(
                    f"{self.bin_path}: the id {worst} does not fit {self.dtype}; the vocabulary needs int32"
                )
            ids = ids.astype(self.dtype)
        data = ids.astype(self.dtype.newbyteorder("<"), copy=False).tobytes()
        self._tokens.write(data)
        self._hash.update(data)
        self._pending += ids.size

    def end_document(self) -> None:
        """Close the current document; raises DataError when it is longer than the format allows."""
        if self._pending > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{self.bin_path}: document {self.num_documents} has {self._pending} tokens; "
                f"the format allows {MAX_DOCUMENT_TOKENS} a document, split it"
            )
        self._lengths.write(struct.pack("<i", self._pending))
        self.num_tokens += self._pending
        self.num_documents += 1
        self._pending = 0

    def add_document(self, tokens: ArrayLike) -> None:
        """Append one whole document [n]."""
        self.write(tokens)
        self.end_document()

    def append(self, shard: Shard) -> None:
        """Append all documents of a shard of the same dtype, in bounded memory."""
        if shard.dtype != self.dtype:
            raise DataError(f"{shard.bin_path}: holds {shard.dtype}, the shard it joins {self.dtype}")
        with shard.bin_path.open("rb") as file:  # read, for mapped pages count as memory of the process
            while (ids := np.fromfile(file, shard.dtype.newbyteorder("<"), _ENTRIES)).size:
                self.write(ids)
        self.num_tokens, self._pending = self.num_tokens + self._pending, 0
        self.num_documents += shard.num_documents
        spans = shard.document_spans()
        while (lengths := np.fromiter((end - start for start, end in islice(spans, _ENTRIES)), "<i4")).size:
            self._lengths.write(lengths.tobytes())

    def close(self) -> ShardInfo:
        """Write the index, make both files durable and give them their names, the .idx last."""
        self._lengths.close()
        self._tokens.flush()
        os.fsync(self._tokens.fileno())
        self._tokens.close()
        idx_sha256 = self._write_index()
        self._side["bin"].replace(self.bin_path)
        self._side["idx"].replace(self.idx_path)
        self._side["lengths"].unlink()
        return ShardInfo(
            self.prefix.name, self.num_documents, self.num_tokens, self._hash.hexdigest(), idx_sha256
        )

    def _write_index(self) -> str:
        n = self.num_documents
        lengths = np.frombuffer(_map(self._side["lengths"]), "<i4", n)
        digest = hashlib.sha256()
        with self._side["idx"].open("wb") as file:

            def put(data: bytes) -> None:
                file.write(data)
                digest.update(data)

            put(HEADER.pack(MAGIC, 1, CODES[self.dtype], n, n + 1))
            for span in _spans(n):
                put(lengths[span].tobytes())
            end = 0
            for span in _spans(n):
                ends = end + np.cumsum(lengths[span].astype(np.int64))
                put(((ends - lengths[span]) * self.dtype.itemsize).astype("<i8").tobytes())
                end = int(ends[-1])
            for span in _spans(n + 1):
                put(np.arange(span.start, span.stop, dtype="<i8").tobytes())
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def abort(self) -> None:
        """Drop everything written so far."""
        self._tokens.close()
        self._lengths.close()
        for path in self._side.values():
            path.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def shard_prefix(path: str | Path) -> Path:
    """The name of a pair without suffix, from NAME, NAME.bin or NAME.idx."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def bin_and_idx(prefix: Path) -> tuple[Path, Path]:
    """Both files of the pair `prefix`."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
