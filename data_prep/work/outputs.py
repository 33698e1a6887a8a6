"""Where work goes: an output that is ours, a plan that says what it is made of, and one process at a time in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.reading.inputs import open_input
from latentpt.data.errors import DataError
from latentpt.data.manifest import write_json

PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What an output is made of."""

    options: Mapping[str, Any]
    """The options that shape it."""
    inputs: list[dict[str, Any]]
    """Its input files, as `inputs.describe` gives them."""

    def as_json(self) -> dict[str, Any]:
        """As it is kept on disk."""
        return {"options": dict(self.options), "inputs": self.inputs}

    def change(self, earlier: Mapping[str, Any], hashes: Mapping[str, str] | None = None) -> str | None:
        """What is different now from `earlier`, as a clause; None when nothing is.

        With `hashes` (sha256 of the inputs then) contents are compared instead of times.
        """
        for key, now in self.options.items():
            then = earlier["options"].get(key, now)
            if then != now:
                return f"was made with {key} = {then}, now it is {now}"
        then_inputs = {entry["file"]: entry for entry in earlier["inputs"]}
        now_inputs = {entry["file"]: entry for entry in self.inputs}
        for file in now_inputs:
            if file not in then_inputs:
                return f"was made without the input {file}"
        for file, then in then_inputs.items():
            if file not in now_inputs:
                return f"was made with the input {file}, which is not among the inputs now"
            if reason := _difference(file, then, now_inputs[file], hashes):
                return reason
        return "was made of the same inputs in another order" if [*then_inputs] != [*now_inputs] else None


def _difference(
    file: str, then: Mapping[str, Any], now: Mapping[str, Any], hashes: Mapping[str, str] | None
) -> str | None:
    if then["bytes"] != now["bytes"]:
        return f"was made when {file} had {then['bytes']:,} bytes, now it has {now['bytes']:,}"
    if hashes is not None:
        if file in hashes and hashes[file] != sha256_of_input(file):
            return f"was made when {file} had another content"
    elif then["modified"] != now["modified"]:
        return (
            f"was made when {file} was last changed at {then['modified']}, now at {now['modified']} "
            "(--hash-inputs compares the contents instead)"
        )
    return None


def sha256_of_input(file: str) -> str:
    """Hash of an input file."""
    with open_input(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def check_name(name: str) -> str:
    """`name` if it can be the first part of a file's name in the output; raises DataError otherwise."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise DataError(f"--name {name!r} is no name of a file; take letters, digits, '-' and '_'")
    return name


def check_writable(output: Path, ours: Callable[[Path], bool] | None = None) -> None:
    """Raise DataError unless `output` can be written: a new folder, or one with nothing but files that are `ours`."""
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not above.is_dir():
        raise DataError(f"{above}: is a file; --output names a folder")
    if not os.access(above, os.W_OK | os.X_OK) or os.statvfs(above).f_flag & os.ST_RDONLY:
        raise DataError(f"{above}: cannot be written to; name another --output")
    if ours is not None and output.is_dir():
        foreign = sorted(path.name for path in output.iterdir() if not ours(path))
        if foreign:
            raise DataError(
                f"{output}: holds {foreign[0]}, which this command has not written; name a new or an empty folder"
            )


def work_folder(output: Path) -> Path:
    """Where the work on `output` lies until it is finished: beside it and hidden, so that it is never an input."""
    return output.with_name(f".{output.name}.partial")


@contextmanager
def claimed(lock: Path, output: Path) -> Iterator[None]:
    """Keep a second process from doing the same at the same time; the lock ends with the process."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{output}: another process is writing it") from None
        yield


def join_plan(work: Path, plan: Plan, output: Path) -> None:
    """Start work in the folder `work`, or join an earlier start of the same; raises DataError for another plan."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / PLAN
    if not path.is_file():
        write_json(path, plan.as_json())
    elif reason := plan.change(json.loads(path.read_text())):
        raise DataError(f"{output}: {reason}; name another output, or delete {work} to start anew")
