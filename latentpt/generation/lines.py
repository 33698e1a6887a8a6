"""Prompts from a file of JSON lines, texts into another, line by line and never half."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from latentpt.data.errors import DataError
from latentpt.files import write_text
from latentpt.generation.look import look, records
from latentpt.generation.text import Options, Writer
from latentpt.seeding import stream
from latentpt.thoughts.identity import identity

TOGETHER = 4
"""Batches of lines that are ordered by length before they are decoded; results wait for one another that long at most."""


def write_text_lines(
    writer: Writer, path: Path, output: str | None, options: Options, batch_size: int, top: int = 0
) -> None:
    """Continue the `prompt` (or `ids`) of every line of a file; write the lines with `text` added, in their order.

    With `top` a line also gets `thoughts`, see `look.records`, with so many tokens for every slot. A line may have a
    `seed` of its own; the others draw from the command's seed and their number. Prompts of like length are decoded
    together. Lines are written as soon as they and all before them are done, see `Output`.
    """
    lines = list(read_lines(path, writer))
    ids = [line["ids"] if "ids" in line else writer.encode(line["prompt"]) for line in lines]
    asked = repr([writer.tokenizer.sha256, options, top, ids, lines])
    with Output(None if output is None else Path(output), identity(writer.model, asked)) as out:
        progress = tqdm(total=len(lines), initial=out.lines, unit="prompt", disable=None)
        done: dict[int, dict[str, Any]] = {}
        for batch in _batches(list(map(len, ids)), out.lines, batch_size):
            streams = [_stream(lines[index], index, options.sampling.seed) for index in batch]
            found = writer.continuations([ids[index] for index in batch], options, streams=streams)
            for index, (text, new) in zip(batch, found, strict=True):
                done[index] = lines[index] | {"text": text}
                if top:
                    read = writer.seen([*ids[index], *new])
                    done[index]["thoughts"] = records(look(writer.model, read, top), read, writer.tokenizer)
            while out.lines in done:
                out.add(json.dumps(done.pop(out.lines), ensure_ascii=False))
            progress.update(len(batch))
        progress.close()


def _batches(lengths: Sequence[int], first: int, batch_size: int) -> Iterator[list[int]]:
    """Numbers of lines from `first` on: stretches of the file in their order, each by length."""
    for start in range(first, len(lengths), TOGETHER * batch_size):
        stretch = range(start, min(start + TOGETHER * batch_size, len(lengths)))
        order = sorted(stretch, key=lengths.__getitem__)
        yield from (order[at : at + batch_size] for at in range(0, len(order), batch_size))


class Output:
    """Where lines go: the standard output, or FILE.partial until the last one is there, which then becomes FILE.

    So FILE is whole or as it was, and the same work (`of`, its name) goes on behind the lines that are in FILE.partial.
    Use as a context manager. Raises DataError for a FILE.partial of other work, or of a process that still lives.
    """

    def __init__(self, path: Path | None, of: str) -> None:
        self.path, self._head = path, json.dumps({"of": of})
        self.lines = 0
        """Lines that are written."""

    def __enter__(self) -> Output:
        if self.path is None:
            return self
        self._side = self.path.with_name(self.path.name + ".partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._side.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self._side}: another process is writing it") from None
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition("\n")  # a crash left half a line
        self._file.truncate(len((whole + newline).encode()))
        head, *written = whole.split("\n") if newline else [""]
        if head not in ("", self._head):
            raise DataError(
                f"{self._side}: was begun with other prompts, options or weights; remove it or name another --output"
            )
        if not head:
            self._append(self._head)
        self.lines = len(written)
        return self

    def add(self, line: str) -> None:
        """Write one more line; it is there when this returns."""
        if self.path is None:
            print(line, flush=True)
        else:
            self._append(line)
        self.lines += 1

    def _append(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.path is None:
            return
        if kind is None:
            self._file.seek(0)
            write_text(self.path, self._file.read().partition("\n")[2])
            self._side.unlink()
        self._file.close()


def read_lines(path: Path, writer: Writer) -> Iterator[dict[str, Any]]:
    """The records of a file; raises DataError naming the first line that is none."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error})") from None
        if not isinstance(record, dict) or not ("ids" in record or isinstance(record.get("prompt"), str)):
            raise DataError(f'{where} has no text under "prompt" and no "ids"')
        if "ids" in record:
            writer.check_ids(record["ids"], where)
        if not isinstance(record.get("seed", 0), int):
            raise DataError(f"{where} has a seed that is no whole number")
        yield record


def _stream(record: dict[str, Any], index: int, seed: int) -> torch.Generator:
    """A seed of the record's own acts as if the record stood alone."""
    return stream(record["seed"], "row", 0) if "seed" in record else stream(seed, "row", index)
