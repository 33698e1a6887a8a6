"""Rows of .parquet and .arrow files, read in small batches of the two columns that are needed.

Every batch is validated before a value of it is touched: offsets of a damaged file point anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.reading.inputs import Piece, open_input
from data_prep.reading.streams import READ, DamagedError
from latentpt.data.errors import DataError

_ROWS = 256

Row = tuple[bytes | None, object]
"""Text and source of a row; None for a null text."""


def rows(piece: Piece, text_field: str, source_field: str) -> Iterator[Row]:
    """Rows of a table; raises DamagedError where the file cannot be read, DataError for a wrong column."""
    import pyarrow as pa

    try:
        yield from _rows(piece, text_field, source_field)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise DamagedError(f"the .{piece.format} file is damaged ({reason})") from None


def _rows(piece: Piece, text_field: str, source_field: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in _record_batches(piece, text_field, source_field):
        column = _column(batch, text_field)
        if column is None:
            raise DataError(
                f"{piece.file}: has no column {text_field!r}; its columns are {', '.join(batch.schema.names)}"
            )
        if not _is_text(column.type):
            raise DataError(f"{piece.file}: column {text_field!r} holds {column.type}, not text")
        texts = pc.cast(column, pa.large_binary()).to_pylist()
        sources = _column(batch, source_field)
        names = sources.to_pylist() if sources is not None else [None] * len(texts)
        yield from zip(texts, names, strict=True)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _record_batches(piece: Piece, *paths: str) -> Iterator[Any]:
    """Valid batches of at most _ROWS rows."""
    with open_input(piece.file) as file:
        for batch in _parquet(file, paths) if piece.format == "parquet" else _arrow(file):
            batch.validate(full=True)
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS)


def _parquet(file: Any, paths: tuple[str, ...]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=READ)
    names = parquet.schema_arrow.names
    # A nested field is a column of its own in the file: the others beside it are not read.
    wanted = [path for path in paths if path in names or path.split(".")[0] in names]
    return parquet.iter_batches(batch_size=_ROWS, columns=wanted or None)


def _arrow(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        yield from pa.ipc.open_stream(file)
    else:
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _column(batch: Any, path: str) -> Any:
    """Column at a dotted path of `batch`, or None."""
    import pyarrow.compute as pc

    name, *nested = path.split(".")
    if path in batch.schema.names:
        return batch.column(path)
    if name not in batch.schema.names:
        return None
    column = batch.column(name)
    for key in nested:
        if not hasattr(column.type, "names") or key not in column.type.names:
            return None
        column = pc.struct_field(column, key)
    return column
