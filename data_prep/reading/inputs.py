"""Input files: which there are, of which format, and how they are grouped into units of work.

A unit is what one worker, Ray task or Slurm task does by itself: consecutive pieces of input of about `unit_size`
bytes. Units depend on names and sizes of the inputs only, so every machine cuts the same ones.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from data_prep.reading.streams import INFLATERS
from latentpt.data.errors import DataError

Format = Literal["jsonl", "json", "txt", "parquet", "arrow"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
TABLES = ("parquet", "arrow")
KNOWN = ".jsonl, .ndjson, .json and .txt (each also with .zst, .gz, .bz2 or .xz), .parquet, .arrow"
# What lies beside data in a folder and is no document of it.
_ABOUT = ("license", "licence", "copying", "notice", "readme", "changelog", "authors")
_DATASET_STATE, _DATASET_DICT = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class Piece:
    """A part of an input file that can be read by itself: the records that start in bytes [start, end)."""

    file: str
    start: int
    end: int

    @property
    def format(self) -> Format:
        """Format by the file's name."""
        return format_of(self.file)[0]

    @property
    def compression(self) -> str:
        """'.zst', '.gz', '.bz2', '.xz' or '' by the file's name."""
        return format_of(self.file)[1]

    @property
    def is_range(self) -> bool:
        """Whether the piece may be less than the file."""
        return self.format == "jsonl" and not self.compression


@dataclass(frozen=True)
class Unit:
    """Consecutive pieces, done by one worker into files of their own."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(piece.end - piece.start for piece in self.pieces)


def format_of(file: str) -> tuple[Format, str]:
    """Format and compression of `file` by its name; raises DataError for a name of neither."""
    name = file.rsplit("/", 1)[-1].lower()
    compression = next((suffix for suffix in INFLATERS if name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(compression)).suffix
    if suffix not in FORMATS or (compression and FORMATS[suffix] in TABLES):
        raise DataError(f"{file}: is of no known input format; known are {KNOWN}")
    return FORMATS[suffix], compression


def is_url(path: str) -> bool:
    """Whether `path` is read through fsspec."""
    return "://" in path


def _filesystem(url: str):
    if importlib.util.find_spec("fsspec") is None:
        raise DataError(f"{url}: URLs need the package fsspec; install it or name a local path")
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: cannot be opened ({error})") from None


def _cannot(path: str, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: is gone; it was there when the work was planned")
    return DataError(f"{path}: cannot be read ({error.strerror or error})")


def open_input(path: str) -> BinaryIO:
    """Open a local path or an fsspec URL for reading bytes; raises DataError when it cannot be."""
    try:
        if is_url(path):
            filesystem, name = _filesystem(path)
            return cast(BinaryIO, filesystem.open(name, "rb"))
        return Path(path).open("rb")
    except OSError as error:
        raise _cannot(path, error) from None


def input_size(path: str) -> int:
    """Bytes of a local file or an fsspec URL."""
    try:
        if is_url(path):
            filesystem, name = _filesystem(path)
            return int(filesystem.size(name))
        return Path(path).stat().st_size
    except OSError as error:
        raise _cannot(path, error) from None


def describe(files: Iterable[str]) -> list[dict[str, Any]]:
    """Name, bytes and time of the last change of each file, for noticing other inputs; URLs have no time."""
    return [
        {"file": file, "bytes": input_size(file), "modified": None if is_url(file) else _modified(file)}
        for file in files
    ]


def _modified(file: str) -> str:
    return datetime.fromtimestamp(Path(file).stat().st_mtime, UTC).isoformat()


def files_of(units: Iterable[Unit]) -> list[str]:
    """The files of `units`, each once, in order."""
    return list(dict.fromkeys(piece.file for unit in units for piece in unit.pieces))


def find_inputs(patterns: Iterable[str]) -> list[str]:
    """Files that `patterns` (paths, globs, directories, URLs) name, in the patterns' order, sorted within each.

    A file named twice, in whatever way, is taken once. A directory gives its files of known formats at any depth, but
    for hidden ones and for licences and the like; a Hugging Face dataset gives its data files. Raises DataError for a
    pattern that matches nothing, for a file of an unknown format and for a dataset of several splits.
    """
    files: dict[str, str] = {}
    for pattern in patterns:
        found = _matches(pattern)
        if not found:
            raise DataError(f"{pattern}: matches no input file; known formats are {KNOWN}")
        for file in found:
            format_of(file)
            files.setdefault(file if is_url(file) else os.path.realpath(file), file)
    return list(files.values())


def _matches(pattern: str) -> list[str]:
    if is_url(pattern):
        filesystem, name = _filesystem(pattern)
        scheme = pattern.split("://", 1)[0]
        if filesystem.isdir(name):
            found = [path for path in filesystem.find(name) if _is_data(path.removeprefix(name))]
        else:
            found = filesystem.glob(name)
        return [f"{scheme}://{path}" for path in sorted(found)]
    path = Path(pattern)
    if path.is_dir():
        return _in_directory(path)
    if path.is_file():  # a name may look like a pattern: part[1].jsonl
        return [pattern]
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207  (relative and absolute patterns alike)
    return sorted(name for name in found if Path(name).is_file())


def _in_directory(folder: Path) -> list[str]:
    refuse_splits(folder)
    if (folder / _DATASET_STATE).is_file():
        return [str(folder / name) for name in dataset_files(folder)]
    files, others = [], []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            if path.name == _DATASET_STATE:
                raise DataError(
                    f"{path.parent}: is a Hugging Face dataset inside {folder}; name it by itself"
                )
            (files if _is_data(path.relative_to(folder).as_posix()) else others).append(str(path))
    if others:
        print(
            f"{folder}: passed over {len(others)} files that are no input: {', '.join(others[:5])}",
            file=sys.stderr,
        )
    return files


def refuse_splits(folder: Path) -> None:
    """Raise DataError for a saved DatasetDict, whose splits must not be mixed."""
    if (folder / _DATASET_DICT).is_file():
        splits = json.loads((folder / _DATASET_DICT).read_text()).get("splits", [])
        raise DataError(
            f"{folder}: is a dataset of the splits {', '.join(splits)}; name one of them, such as {folder / 'train'}"
        )


def dataset_files(folder: Path) -> list[str]:
    """Data files of a saved Hugging Face dataset, by its state.json."""
    state = json.loads((folder / _DATASET_STATE).read_text())
    return [entry["filename"] for entry in state["_data_files"]]


def _is_data(name: str) -> bool:
    """Whether a file in a directory is data, by its name relative to the directory."""
    parts = name.strip("/").split("/")
    try:
        kind, _ = format_of(name)
    except DataError:
        return False
    about = kind == "txt" and parts[-1].lower().split(".")[0] in _ABOUT
    return not about and not any(part.startswith(".") for part in parts)


def plan_units(files: Sequence[str], unit_size: int) -> list[Unit]:
    """Group `files` into units of about `unit_size` bytes; plain .jsonl files larger than that are cut into ranges."""
    units: list[Unit] = []
    pieces: list[Piece] = []
    filled = 0
    for file in files:
        for piece in _pieces(file, unit_size):
            if pieces and filled + piece.end - piece.start > unit_size:
                units.append(Unit(len(units), tuple(pieces)))
                pieces, filled = [], 0
            pieces.append(piece)
            filled += piece.end - piece.start
    if pieces:
        units.append(Unit(len(units), tuple(pieces)))
    return units


def _pieces(file: str, unit_size: int) -> list[Piece]:
    whole = Piece(file, 0, input_size(file))
    if not whole.is_range or whole.end <= unit_size:
        return [whole]
    return [Piece(file, at, min(at + unit_size, whole.end)) for at in range(0, whole.end, unit_size)]
