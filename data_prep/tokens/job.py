"""A tokenization as data: its options, its units, its place on disk. Equal jobs write equal bytes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.reading.inputs import Unit
from data_prep.tokens.encoding import EncodeOptions
from latentpt.data.errors import DataError
from latentpt.data.manifest import FILE_NAME, WORK, write_json

FOLDERS = "folders.json"  # marks a finished output of several folders, as manifest.json marks one of one


@dataclass(frozen=True)
class Job:
    """Everything that shapes the output, and where it goes."""

    output: str
    """Folder to write."""
    name: str
    """First part of the shards' names."""
    units: tuple[Unit, ...]
    """The work."""
    encode: EncodeOptions
    """How documents become tokens."""
    tokenizer_sha256: str
    """Hash of the tokenizer file."""
    shard_tokens: int
    """Most tokens of a shard, unless one document alone has more."""
    unit_size: int
    """Bytes of input a unit has, about."""
    max_bad: float
    """Largest share of bad records."""

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)

    @property
    def work(self) -> Path:
        """Where unfinished work lies."""
        return self.folder / WORK

    def unit_folder(self, unit: Unit) -> Path:
        """Where the unit's shards wait until all units are done."""
        return self.work / f"unit-{unit.index:06d}"

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
        return {
            "name": self.name,
            "tokenizer_sha256": self.tokenizer_sha256,
            "eod": self.encode.eod,
            **dataclasses.asdict(self.encode.read),
            "split_by_source": self.encode.split_by_source,
            "held_out": self.encode.held_out,
            "shard_tokens": self.shard_tokens,
            "unit_size": self.unit_size,
        }

    def plan(self) -> dict[str, Any]:
        """Options and units, for comparing with an earlier start."""
        units = [[[piece.file, piece.start, piece.end] for piece in unit.pieces] for unit in self.units]
        return {"options": self.options(), "units": units}

    def prepare(self) -> bool:
        """Make the work folder, or join an earlier start of the same job; return whether it is finished already.

        Raises DataError when the output folder belongs to another job.
        """
        for mark in (FILE_NAME, FOLDERS):
            if (self.folder / mark).is_file():
                return self._is_finished(self.folder / mark)
        self.work.mkdir(parents=True, exist_ok=True)
        plan = self.work / "plan.json"
        if not plan.is_file():
            write_json(plan, self.plan())
            return False
        earlier = json.loads(plan.read_text())
        if earlier["options"] != self.options():
            raise self._other(earlier["options"])
        if earlier != self.plan():
            raise DataError(
                f"{self.folder}: was started with other inputs; name another output or delete {self.work}"
            )
        return False

    def _is_finished(self, mark: Path) -> bool:
        earlier = json.loads(mark.read_text())
        if earlier["options"] != self.options():
            raise self._other(earlier["options"])
        return True

    def _other(self, earlier: dict[str, Any]) -> DataError:
        now = self.options()
        key = next(key for key in now if now[key] != earlier.get(key))
        return DataError(
            f"{self.folder}: was tokenized with {key} = {earlier.get(key)}, now it is {now[key]}; "
            "name another output or delete that one"
        )
