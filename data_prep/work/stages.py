"""Stages: items of work that are done once, whatever is killed in between.

Every item has a folder of its own with its files and, written last, the mark `unit.json` that holds its result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.work.executors import Report, Sized, UnitFunction, unit_results
from data_prep.work.progress import Progress
from latentpt.data.manifest import write_json

Result = dict[str, Any]
_MARK = "unit.json"


class Stage:
    """The items of one step of a job, kept in a folder."""

    def __init__(self, root: Path, name: str = "unit") -> None:
        """Item i has the folder `root`/NAME-00000i."""
        self._root, self._name = root, name

    def folder(self, index: int) -> Path:
        """Where the files of item `index` lie."""
        return self._root / f"{self._name}-{index:06d}"

    def is_done(self, index: int) -> bool:
        """Whether the item has its mark."""
        return (self.folder(index) / _MARK).is_file()

    def result(self, index: int) -> Result:
        """What the item's mark says."""
        return json.loads((self.folder(index) / _MARK).read_text())

    def run(
        self,
        function: UnitFunction[Any, Result],
        items: Sequence[tuple[int, Sized]],
        workers: int,
        executor: str,
        progress: Progress,
        report: Report | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Do the (index, item) pairs of `items` that are not done; give index and result of each of those.

        `function` gets an item, the number of its helpers, and what to report progress to: `report` or the progress.
        """
        todo = [_Numbered(index, item) for index, item in items if not self.is_done(index)]
        progress.skip(sum(item.size for _, item in items) - sum(entry.size for entry in todo))
        results = unit_results(
            partial(_mark, self, function), todo, workers, executor, report or progress.add
        )
        for entry, result in zip(todo, results, strict=True):
            yield entry.index, result


class _Numbered:
    def __init__(self, index: int, item: Sized) -> None:
        self.index, self.item, self.size = index, item, item.size


def _mark(
    stage: Stage, function: UnitFunction[Any, Result], entry: _Numbered, helpers: int, report: Report
) -> Result:
    folder = stage.folder(entry.index)
    folder.mkdir(parents=True, exist_ok=True)
    result = function(entry.item, helpers, report)
    write_json(folder / _MARK, result)
    return result
