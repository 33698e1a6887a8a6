"""The manifest of a shard folder: what the shards hold, which tokenizer made them, from which records.

A shard folder is complete when it has its manifest.json, which is written last:

    NAME-00000-of-00002.bin  NAME-00000-of-00002.idx  ...  tokenizer.json | tokenizer.model  manifest.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from latentpt.data.errors import DataError
from latentpt.data.indexed import ShardInfo

FILE_NAME = "manifest.json"
WORK = ".work"  # folder of a tokenization under way; gone when it has finished


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TokenizerRecord(_Record):
    """The tokenizer that made the ids."""

    file: str | None
    """Name of its copy in the folder; null when the ids came without a tokenizer."""
    sha256: str | None
    """Hash of that file."""
    vocab_size: int
    """Ids are 0 .. vocab_size - 1."""
    eod_id: int | None
    """Id of the end-of-document token; null when there is none."""


class Counts(_Record):
    """How much of something there is."""

    documents: int = 0
    """Documents."""
    tokens: int = 0
    """Tokens, end-of-document tokens included."""
    text_bytes: int = 0
    """UTF-8 bytes of the text; 0 when the text was never seen."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            text_bytes=self.text_bytes + other.text_bytes,
        )


class Manifest(_Record):
    """Everything known about a shard folder."""

    format: str = "latentpt-shards-1"
    """Name and version of this layout."""
    tokenizer: TokenizerRecord
    """The tokenizer that made the ids."""
    dtype: str
    """Type of the ids in the .bin files."""
    counts: Counts
    """All shards together."""
    ends_marked: bool = True
    """Whether every document ends with the end-of-document token (Pythia's preshuffled sequences do not)."""
    sources: dict[str, Counts] = {}
    """The same by source (the records' pile_set_name or what stood for it)."""
    shards: list[ShardInfo]
    """The pairs in reading order."""
    records_in: int
    """Records read: documents here, documents elsewhere and quarantined records together."""
    records_elsewhere: int = 0
    """Documents of the same input that went to sibling folders."""
    quarantined: dict[str, int] = {}
    """Records that became no document, by kind."""
    inputs: list[dict[str, Any]] = []
    """Parts of files read: name, first byte, bytes, lines, sha256."""
    input_files: list[dict[str, Any]] = []
    """The files: name, bytes and time of the last change, for noticing other data under the same name."""
    options: dict[str, Any] = {}
    """Options that shaped the output."""

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`, all or nothing."""
        write_json(folder / FILE_NAME, self.model_dump())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest; raises DataError when it is missing, damaged or of another version."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise DataError(
            f"{folder}: has no {FILE_NAME}; it is no shard folder or its tokenization did not finish"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: is damaged or of another version ({where}: {first['msg']})") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` through a side file, so that the file is there whole or not at all."""
    side = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # processes may write the same file at once
    with side.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, sort_keys=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    side.replace(path)
