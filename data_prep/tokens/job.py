"""A tokenization as data: its options and its place on disk. Equal jobs on equal input write equal shards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.tokens.encoding import EncodeOptions
from data_prep.work.stages import Stage
from latentpt.data.manifest import FILE_NAME, WORK

FOLDERS = "folders.json"  # marks a finished output of several folders, as manifest.json marks one of one
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Job:
    """Everything that shapes the output, and where it goes."""

    output: str
    """Folder to write."""
    name: str
    """First part of the shards' names."""
    encode: EncodeOptions
    """How documents become tokens."""
    tokenizer_sha256: str
    """Hash of the tokenizer file."""
    shard_tokens: int
    """Most tokens of a shard, unless one document alone has more."""
    unit_size: int
    """Bytes of input a unit has, about."""
    max_bad: float | None
    """Largest share of bad records; None stops only when nothing but bad records comes."""

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)

    @property
    def work(self) -> Path:
        """Where unfinished work lies."""
        return self.folder / WORK

    @property
    def units(self) -> Stage:
        """The units, whose shards wait until all are done."""
        return Stage(self.work, "unit")

    @property
    def merged(self) -> Stage:
        """The shards of the output, made of those of the units."""
        return Stage(self.work, "shard")

    @property
    def several_folders(self) -> bool:
        """Whether documents go to folders inside the output folder."""
        return self.encode.split_by_source or self.encode.held_out > 0

    @property
    def finished_mark(self) -> Path:
        """The file that is written last of all."""
        return self.folder / (FOLDERS if self.several_folders else FILE_NAME)

    def options(self) -> dict[str, Any]:
        """The options that shape the output, as a manifest keeps them."""
        read = dataclasses.asdict(self.encode.read)
        del read["allow_damaged"]  # it changes nothing of what undamaged files give
        return {
            "name": self.name,
            "tokenizer_sha256": self.tokenizer_sha256,
            "eod": self.encode.eod,
            "bos": self.encode.bos,
            **read,
            "split_by_source": self.encode.split_by_source,
            "held_out": self.encode.held_out,
            "shard_tokens": self.shard_tokens,
            "unit_size": self.unit_size,
        }
