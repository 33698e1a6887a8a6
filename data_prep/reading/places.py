"""Line numbers in whole files, for records read in ranges of them.

A worker that reads a range of a file knows lines within the range and, at its end, how many there were. Once all
ranges are done their sums give the line of every record that is reported, without reading anything again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

Place = tuple[str, int]
"""A file and the byte at which the range in it starts."""


def lines_before(ranges: Iterable[tuple[str, int, int]]) -> dict[Place, int]:
    """Lines of the file before each range, for (file, start, lines in the range) in reading order."""
    seen: defaultdict[str, int] = defaultdict(int)
    before = {}
    for file, start, lines in ranges:
        before[file, start] = seen[file]
        seen[file] += lines
    return before


def resolve(entry: dict[str, Any], before: dict[Place, int]) -> dict[str, Any]:
    """`entry` with its line counted from the file's start; takes out the range's `start` that was needed for it."""
    entry["line"] += before[entry["file"], entry.pop("start")]
    return entry


def join_reports(parts: Iterable[Path], joined: BinaryIO, before: dict[Place, int]) -> None:
    """Write the JSON lines of `parts` to `joined`, each entry resolved."""
    for part in parts:
        with part.open(encoding="utf-8") as lines:
            for line in lines:
                joined.write(json.dumps(resolve(json.loads(line), before)).encode() + b"\n")
