"""Where a conversion writes: shards, a Hugging Face dataset, Parquet, or one raw .bin.

Every sink writes into a folder of its own, which appears under its name only when it is complete. Finished files have a
mark that says through which document they go; a sink that is begun again goes on after them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentpt.data.errors import DataError
from latentpt.data.indexed import ShardInfo, ShardWriter, bin_and_idx
from latentpt.data.manifest import write_json

_BATCH_TOKENS = 1 << 20
_MARK_BYTES = 1 << 26  # of a raw file between marks


class Sink(Protocol):
    """Takes documents piece by piece, from the one after those that an earlier start has finished."""

    finished: int
    """Documents in finished files."""

    def write(self, ids: NDArray, ends: bool) -> None:
        """Append ids [n] to the document at hand, and end it there if `ends`."""
        ...

    def close(self) -> list[ShardInfo]:
        """Finish the files; return the shards for sinks that write shards."""
        ...


def _marks(folder: Path) -> list[dict[str, Any]]:
    """What earlier starts have finished in `folder`: the marks of its files, in order."""
    marks = []
    while (path := folder / f"part-{len(marks):05d}.json").is_file():
        marks.append(json.loads(path.read_text()))
    return marks


def _mark(folder: Path, number: int, documents: int, **more: Any) -> None:
    write_json(folder / f"part-{number:05d}.json", {"documents": documents, **more})


def _remove_marks(folder: Path) -> None:
    for path in folder.glob("part-*.json"):
        path.unlink()


class ShardSink:
    """Megatron pairs of at most `shard_tokens` tokens, unless one document alone has more."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int) -> None:
        """Write NAME-00000-of-0000N.{bin,idx} into `folder`."""
        self._folder, self._name, self._dtype, self._limit = folder, name, dtype, shard_tokens
        for stale in folder.glob("*.tmp"):
            stale.unlink()
        marks = _marks(folder)
        self.finished = self._documents = marks[-1]["documents"] if marks else 0
        self._infos = [ShardInfo(**mark["info"]) for mark in marks]
        self._writer: ShardWriter | None = None

    def write(self, ids: NDArray, ends: bool) -> None:
        """Append ids [n] to the document at hand, and end it there if `ends`."""
        if self._writer is None:
            self._writer = ShardWriter(self._folder / f"part-{len(self._infos):05d}", self._dtype)
        self._writer.write(ids)
        if ends:
            self._writer.end_document()
            if self._writer.num_tokens >= self._limit:
                self._next()

    def _next(self) -> None:
        if self._writer is not None:
            info = self._writer.close()
            self._documents += info.documents
            _mark(self._folder, len(self._infos), self._documents, info=dataclasses.asdict(info))
            self._infos.append(info)
            self._writer = None

    def close(self) -> list[ShardInfo]:
        """Finish the last shard and give all their names."""
        self._next()
        named = []
        for number, info in enumerate(self._infos):
            name = f"{self._name}-{number:05d}-of-{len(self._infos):05d}"
            for source, target in zip(
                bin_and_idx(self._folder / info.name), bin_and_idx(self._folder / name), strict=True
            ):
                if source.exists() or not target.exists():  # else it was moved before a kill
                    source.replace(target)
            named.append(ShardInfo(name, info.documents, info.tokens, info.bin_sha256, info.idx_sha256))
        _remove_marks(self._folder)
        return named


class RawSink:
    """One raw .bin: ids back to back, nothing else."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        """Write to `path`."""
        self._path, self._dtype = path, dtype
        marks = _marks(path.parent)
        self.finished = self._documents = marks[-1]["documents"] if marks else 0
        self._file = path.open("r+b" if marks else "wb")
        self._file.truncate(marks[-1]["bytes"] if marks else 0)
        self._marked = self._file.seek(0, 2)

    def write(self, ids: NDArray, ends: bool) -> None:
        """Append ids [n]; a raw file does not know documents."""
        limit = np.iinfo(self._dtype).max
        if ids.size and int(ids.max()) > limit:
            raise DataError(
                f"{self._path.name}: the id {ids.max()} does not fit {self._dtype}; choose --dtype int32"
            )
        self._file.write(ids.astype(self._dtype.newbyteorder("<"), copy=False).tobytes())
        self._documents += ends
        if ends and self._file.tell() - self._marked >= _MARK_BYTES:
            self._file.flush()
            self._marked = self._file.tell()
            _mark(self._path.parent, 0, self._documents, bytes=self._marked)

    def close(self) -> list[ShardInfo]:
        """Finish the file."""
        self._file.close()
        _remove_marks(self._path.parent)
        return []


class ListSink:
    """Rows of token lists: a Hugging Face dataset folder (`load_from_disk`) or Parquet files, one row a document."""

    def __init__(self, folder: Path, kind: str, column: str, dtype: np.dtype, shard_tokens: int) -> None:
        """Write data-00000-of-0000N.arrow (or .parquet) into `folder`."""
        import pyarrow as pa

        self._folder, self._kind, self._limit = folder, kind, shard_tokens
        self._dtype, self._column = dtype, column
        feature = {column: {"feature": {"dtype": dtype.name, "_type": "Value"}, "_type": "List"}}
        self._features = feature
        metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
        self._schema = pa.schema({column: pa.list_(pa.from_numpy_dtype(dtype))}, metadata=metadata)
        self._rows: list[NDArray] = []
        self._open: list[NDArray] = []
        marks = _marks(folder)
        self._files = [folder / f"part-{number:05d}" for number in range(len(marks))]
        self.finished = self._documents = marks[-1]["documents"] if marks else 0
        self._writer: Any = None
        self._waiting = self._written = 0

    def write(self, ids: NDArray, ends: bool) -> None:
        """Append ids [n] to the row at hand, and end it there if `ends`; a row is in memory as a whole."""
        self._open.append(ids.astype(self._dtype, copy=False))
        self._waiting += len(ids)
        if ends:
            self._rows.append(np.concatenate(self._open) if len(self._open) > 1 else self._open[0])
            self._open = []
            if self._waiting >= _BATCH_TOKENS:
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        if self._writer is None:
            path = self._folder / f"part-{len(self._files):05d}"
            self._files.append(path)
            self._writer = self._new_writer(path)
        offsets = np.cumsum([0, *map(len, self._rows)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(self._rows)))
        self._writer.write_batch(pa.record_batch([lists], schema=self._schema))
        self._written += self._waiting
        self._documents += len(self._rows)
        self._rows, self._waiting = [], 0
        if self._written >= self._limit:
            self._finish_file()

    def _new_writer(self, path: Path) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        return (
            pq.ParquetWriter(path, self._schema, compression="zstd")
            if self._kind == "parquet"
            else pa.ipc.new_stream(str(path), self._schema)
        )

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            _mark(self._folder, len(self._files) - 1, self._documents)
        self._writer, self._written = None, 0

    def close(self) -> list[ShardInfo]:
        """Finish the files and give them their names, with what `load_from_disk` looks for."""
        self._flush()
        self._finish_file()
        names = [f"data-{i:05d}-of-{len(self._files):05d}.{self._kind}" for i in range(len(self._files))]
        for path, name in zip(self._files, names, strict=True):
            if path.exists():  # else it was moved before a kill
                path.replace(self._folder / name)
        if self._kind == "arrow":
            state = {
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": "0" * 16,
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            }
            (self._folder / "state.json").write_text(json.dumps(state, indent=1))
            (self._folder / "dataset_info.json").write_text(
                json.dumps({"features": self._features}, indent=1)
            )
        _remove_marks(self._folder)
        return []
