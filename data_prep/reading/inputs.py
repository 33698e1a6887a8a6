"""Input files: which there are, of which format, and how they are grouped into units of work.

A unit is what one worker, Ray task or Slurm task does by itself: consecutive pieces of input of about `unit_size`
bytes. Units depend on names and sizes of the inputs only, so every machine cuts the same ones.
"""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from latentpt.data.errors import DataError

Format = Literal["jsonl", "json", "txt", "parquet", "arrow"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".json": "json", ".txt": "txt", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS = (".zst", ".gz")
KNOWN = ", ".join([*FORMATS, ".jsonl.zst", ".jsonl.gz"])


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
        """'.zst', '.gz' or '' by the file's name."""
        return format_of(self.file)[1]

    @property
    def is_range(self) -> bool:
        """Whether the piece may be less than the file."""
        return self.format == "jsonl" and not self.compression


@dataclass(frozen=True)
class Unit:
    """Consecutive pieces, done by one worker into shards of their own."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(piece.end - piece.start for piece in self.pieces)


def format_of(file: str) -> tuple[Format, str]:
    """Format and compression of `file` by its name; raises DataError for a name of neither."""
    name = file.rsplit("/", 1)[-1].lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(compression)).suffix
    if suffix not in FORMATS or (compression and suffix in (".parquet", ".arrow")):
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


def open_input(path: str) -> BinaryIO:
    """Open a local path or an fsspec URL for reading bytes."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        return cast(BinaryIO, filesystem.open(name, "rb"))
    return Path(path).open("rb")


def input_size(path: str) -> int:
    """Bytes of a local file or an fsspec URL."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        return int(filesystem.size(name))
    return Path(path).stat().st_size


def _matches(pattern: str) -> list[str]:
    if is_url(pattern):
        filesystem, name = _filesystem(pattern)
        scheme = pattern.split("://", 1)[0]
        found = filesystem.find(name) if filesystem.isdir(name) else filesystem.glob(name)
        return [f"{scheme}://{path}" for path in sorted(found)]
    if Path(pattern).is_dir():
        return sorted(str(path) for path in Path(pattern).rglob("*") if path.is_file())
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207  (relative and absolute patterns alike)
    return sorted(path for path in found if Path(path).is_file())


def find_inputs(patterns: Iterable[str]) -> list[str]:
    """Files that `patterns` (paths, globs, directories, URLs) name, in the patterns' order, sorted within each.

    A directory gives its files of known formats at any depth. Raises DataError for a pattern that matches nothing
    and for a file of an unknown format.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        found = _matches(pattern)
        if not is_url(pattern) and Path(pattern).is_dir():
            found = [file for file in found if _is_known(file)]
        if not found:
            raise DataError(f"{pattern}: matches no input file; known formats are {KNOWN}")
        for file in found:
            format_of(file)
            files[file] = None
    return list(files)


def _is_known(file: str) -> bool:
    try:
        format_of(file)
    except DataError:
        return False
    return True


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
