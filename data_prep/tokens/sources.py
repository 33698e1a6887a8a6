"""Token files of other formats as one stream: pieces of documents, in bounded memory."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.reading.inputs import refuse_splits
from latentpt.data.batches import shard_folders
from latentpt.data.errors import DataError
from latentpt.data.indexed import Index, bin_and_idx, shard_prefix
from latentpt.data.manifest import FILE_NAME, read_manifest

SPAN = 1 << 22  # tokens in memory at a time

_LLMC_HEADER = 1024  # bytes
_LLMC_DTYPES = {20240520: "<u2", 20240801: "<u4"}  # by the magic of the file

Piece = tuple[NDArray, bool]
"""Ids [n] of the document at hand, and whether it ends with them."""


@dataclass(frozen=True)
class Layout:
    """How to understand files that do not say it themselves."""

    column: str = "input_ids"
    """Column of token lists in Arrow and Parquet files."""
    raw_dtype: str = "uint16"
    """Type of the ids in a raw .bin."""
    eod_id: int | None = None
    """Id that ends a document in a raw .bin; None makes each file one document."""
    bos_id: int | None = None
    """Id that starts a document in a raw .bin (llama2.c), instead."""


@dataclass(frozen=True)
class TokenFile:
    """One input of a conversion: a file with ids, its parts and its index if it has one."""

    kind: str
    """megatron, arrow, parquet or raw."""
    paths: tuple[Path, ...]
    """The file; for megatron the parts of the .bin in order."""
    index: Path | None = None
    """The .idx of a megatron file."""

    def pieces(self, layout: Layout) -> Iterator[Piece]:
        """The ids in order, cut into pieces of at most SPAN."""
        if self.index is not None:
            return _megatron(Index(self.index), self.paths)
        if self.kind == "raw":
            return _raw(self.paths[0], layout)
        return _lists(self.paths[0], self.kind, layout.column)

    def is_wide(self, layout: Layout) -> bool:
        """Whether an id takes more than two bytes, as far as the file says."""
        if self.index is not None:
            return Index(self.index).dtype.itemsize > 2
        if self.kind == "raw":
            return _raw_ids(self.paths[0], np.dtype(layout.raw_dtype)).dtype.itemsize > 2
        return True

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(path.stat().st_size for path in self.paths)


def find_token_files(paths: Sequence[str]) -> list[TokenFile]:
    """The token files that `paths` name: pairs, shard folders, folders of a dataset, single files.

    An .idx without a .bin of its name takes the parts NAME-*-of-*.bin (or NAME*.bin), in order, as one .bin.
    Raises DataError for a path that is none of these.
    """
    files: list[TokenFile] = []
    for path in map(Path, paths):
        files += _in_folder(path) if path.is_dir() else [_token_file(path)]
    return files


def _in_folder(folder: Path) -> list[TokenFile]:
    refuse_splits(folder)
    shards = [path for path in shard_folders(folder) if (path / FILE_NAME).is_file()]
    if shards:
        return [
            _token_file(path / f"{info.name}.idx") for path in shards for info in read_manifest(path).shards
        ]
    for suffix in (".idx", ".arrow", ".parquet", ".bin"):
        if found := sorted(folder.glob(f"*{suffix}")):
            return [_token_file(path) for path in found]
    raise DataError(f"{folder}: holds no .idx, .arrow, .parquet or .bin file")


def _token_file(path: Path) -> TokenFile:
    bin_path, idx_path = bin_and_idx(shard_prefix(path))
    if idx_path.is_file():
        parts = [bin_path] if bin_path.is_file() else sorted(path.parent.glob(f"{idx_path.stem}*.bin"))
        if not parts:
            raise DataError(f"{bin_path}: there is no such file, nor parts of it named {idx_path.stem}-*.bin")
        return TokenFile("megatron", tuple(parts), idx_path)
    kinds = {".arrow": "arrow", ".parquet": "parquet", ".bin": "raw"}
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.suffix not in kinds:
        raise DataError(f"{path}: is no token file; known are .idx with .bin, .arrow, .parquet and raw .bin")
    return TokenFile(kinds[path.suffix], (path,))


def _cut(ids: NDArray) -> Iterator[Piece]:
    """One whole document in pieces."""
    starts = range(0, max(len(ids), 1), SPAN)
    return ((ids[start : start + SPAN], start + SPAN >= len(ids)) for start in starts)


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    """Ids of a file without header, mapped; an empty file cannot be."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _megatron(index: Index, parts: Sequence[Path]) -> Iterator[Piece]:
    dtype = index.dtype.newbyteorder("<")
    sizes = [path.stat().st_size for path in parts]
    index.check_bin_size(parts[0] if len(parts) == 1 else parts[-1], sum(sizes))
    for path, size in zip(parts, sizes, strict=True):
        if size % dtype.itemsize:
            raise DataError(f"{path}: is {size} bytes long, no multiple of the {dtype.itemsize} of a token")
    mapped = [_mapped(path, dtype) for path in parts]
    starts = np.cumsum([0, *map(len, mapped)]).tolist()
    for start, end in index.document_spans():
        at = start
        for ids in _across(mapped, starts, start, end):
            at += len(ids)
            yield ids, at == end
        if start == end:
            yield mapped[0][:0], True


def _across(parts: Sequence[NDArray], starts: Sequence[int], start: int, end: int) -> Iterator[NDArray]:
    """Ids [start, end) of `parts` laid end to end, where part i begins at starts[i]."""
    number = bisect.bisect_right(starts, start) - 1
    while start < end:
        base = starts[number]
        piece = parts[number][start - base : min(end, start + SPAN) - base]
        yield piece
        start += len(piece)
        number += start >= starts[number + 1]


def _raw(path: Path, layout: Layout) -> Iterator[Piece]:
    ids = _raw_ids(path, np.dtype(layout.raw_dtype).newbyteorder("<"))
    mark, after = (layout.bos_id, 0) if layout.eod_id is None else (layout.eod_id, 1)
    started = False  # whether a document is open
    for start in range(0, len(ids), SPAN):
        span = ids[start : start + SPAN]
        cuts = (np.flatnonzero(span == mark) + after).tolist() if mark is not None else []
        at = 0
        for cut in cuts:
            if cut > at or started:
                yield span[at:cut], True
            at, started = cut, False
        if at < len(span):
            yield span[at:], False
            started = True
    if started:
        yield ids[:0], True


def _raw_ids(path: Path, dtype: np.dtype) -> NDArray:
    """Ids of a raw file; those of llm.c say in a header of 256 int32 what they hold: magic, version, number of ids."""
    size = path.stat().st_size
    if size >= _LLMC_HEADER:
        magic, _, count = np.fromfile(path, "<i4", 3).tolist()
        if magic in _LLMC_DTYPES:
            dtype = np.dtype(_LLMC_DTYPES[magic])
            if size != _LLMC_HEADER + count * dtype.itemsize:
                raise DataError(
                    f"{path}: has the header of llm.c with {count} ids of {dtype}, but {size - _LLMC_HEADER} bytes of "
                    "them; the file is damaged or truncated"
                )
            return np.memmap(path, dtype, "r", _LLMC_HEADER) if count else np.empty(0, dtype)
    if size % dtype.itemsize:
        raise DataError(f"{path}: is {size} bytes long, no multiple of the {dtype.itemsize} of a token")
    return _mapped(path, dtype)


def _lists(path: Path, kind: str, column: str) -> Iterator[Piece]:
    for batch in _batches(path, kind, column):
        if column not in batch.schema.names:
            raise DataError(
                f"{path}: has no column {column!r}; its columns are {', '.join(batch.schema.names)}"
            )
        for ids in _rows(path, batch.column(column)):
            yield from _cut(ids)


def _rows(path: Path, lists: Any) -> Iterator[NDArray]:
    import pyarrow as pa

    if not hasattr(lists.type, "value_type") or not pa.types.is_integer(lists.type.value_type):
        raise DataError(f"{path}: the column holds {lists.type}, not lists of token ids")
    if lists.null_count:
        raise DataError(f"{path}: the column holds {lists.null_count} rows without a list")
    if hasattr(lists.type, "list_size"):
        values = lists.flatten().to_numpy(zero_copy_only=False)
        yield from values.reshape(-1, lists.type.list_size)
        return
    values = lists.values.to_numpy(zero_copy_only=False)
    offsets = lists.offsets.to_pylist()
    yield from (values[start:end] for start, end in itertools.pairwise(offsets))


def _batches(path: Path, kind: str, column: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == "parquet":
            file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
            columns = [column] if column in file.schema_arrow.names else None
            yield from map(_valid, file.iter_batches(batch_size=1024, columns=columns))
            return
        with pa.memory_map(str(path)) as source:
            try:
                reader = pa.ipc.open_file(source)
                stream = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                stream = pa.ipc.open_stream(source)
            yield from map(_valid, stream)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as {kind} ({error})") from None


def _valid(batch: Any) -> Any:
    """`batch`, if its offsets stay inside it."""
    batch.validate(full=True)
    return batch
