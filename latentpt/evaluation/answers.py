"""Answers to requests, kept as they are found, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Answers:
    """An append-only file of JSON lines {"key", "value"}; without a path answers are kept in memory alone."""

    def __init__(self, path: Path | None, identity: str) -> None:
        """`identity` says whose answers these are; answers of another model or another way of asking have other keys."""
        self.path, self.identity = path, identity
        self._known: dict[str, Any] = {}
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        content = path.read_text(encoding="utf-8")
        whole, newline, cut = content.rpartition("\n")
        if cut:  # a crash left half a line
            path.write_text(whole + newline, encoding="utf-8")
        for line in whole.split("\n") if whole else []:
            record = json.loads(line)
            self._known[record["key"]] = record["value"]

    def key(self, *request: Any) -> str:
        """The name of a request."""
        return hashlib.sha256(json.dumps([self.identity, *request]).encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def add(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Keep answers; they are on disk when this returns."""
        pairs = list(pairs)
        self._known.update(pairs)
        if self.path is not None and pairs:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"key": key, "value": value}) + "\n" for key, value in pairs)
