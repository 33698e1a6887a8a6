"""One unit of work: its shards, which survive a kill.

.work/unit-000003/ROUTE/00000.{bin,idx}   a finished shard of the unit
.work/unit-000003/ROUTE/00000.json        what is in it, written after it: the mark that it need not be redone
.work/unit-000003/unit.json               counts of the whole unit, written last
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.reading.bad import Bad, quarantine_entry
from data_prep.reading.inputs import Unit
from data_prep.tokens.encoding import Encoded, EncodedDocument
from latentpt.data.indexed import ShardWriter
from latentpt.data.manifest import Counts, write_json


class _Route:
    """The shards of one folder of a unit."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self._dtype, self._limit = folder, dtype, shard_tokens
        self.shards = _finished(folder)
        self._writer: ShardWriter | None = None
        self._through = -1
        self._sources: dict[str, Counts] = {}

    def add(self, document: EncodedDocument) -> None:
        """Append a document, in a new shard if it does not fit the one at hand."""
        size = document.num_tokens(self._dtype)
        if self._writer and self._writer.num_documents and self._writer.num_tokens + size > self._limit:
            self.close()
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = ShardWriter(self.folder / f"{len(self.shards):05d}", self._dtype)
        for piece in document.pieces():
            self._writer.write(piece)
        self._writer.end_document()
        self._through = document.number
        before = self._sources.get(document.source, Counts())
        self._sources[document.source] = before + Counts(
            documents=1, tokens=size, text_bytes=document.text_bytes
        )

    def close(self) -> None:
        """Finish the shard at hand and mark it."""
        if self._writer is None:
            return
        entry = {
            "info": dataclasses.asdict(self._writer.close()),
            "through": self._through,
            "sources": {source: counts.model_dump() for source, counts in sorted(self._sources.items())},
        }
        write_json(self.folder / f"{len(self.shards):05d}.json", entry)
        self.shards.append(entry)
        self._writer, self._sources = None, {}

    def abort(self) -> None:
        if self._writer:
            self._writer.abort()


def _finished(folder: Path) -> list[dict[str, Any]]:
    """Marks of the finished shards of a route, in order."""
    marks = []
    while (path := folder / f"{len(marks):05d}.json").is_file():
        marks.append(json.loads(path.read_text()))
    return marks


def finished_records(folder: Path) -> dict[str, int]:
    """For every route of a unit's folder, the number of the last record that is in a finished shard."""
    routes = {mark.parent for mark in folder.rglob("00000.json")}
    return {
        "" if route == folder else route.relative_to(folder).as_posix(): _finished(route)[-1]["through"]
        for route in routes
    }


class UnitWriter:
    """Writes what became of a unit's chunks, which must come in order."""

    def __init__(self, unit: Unit, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        """Take up `unit` where its folder says it was left; shards have at most `shard_tokens` tokens."""
        self.unit, self.folder, self._dtype, self._shard_tokens = unit, folder, dtype, shard_tokens
        for stale in self.folder.rglob("*.tmp"):
            stale.unlink()
        self._routes: dict[str, _Route] = {}
        for route in finished_records(self.folder):
            self._route(route)
        self._quarantine = (self.folder / "quarantine.tmp").open("w", encoding="utf-8")
        self.records = 0
        self.quarantined: Counter[str] = Counter()
        self._inputs: list[dict[str, Any]] = []

    def _route(self, name: str) -> _Route:
        if name not in self._routes:
            self._routes[name] = _Route(self.folder / name, self._dtype, self._shard_tokens)
        return self._routes[name]

    def add(self, encoded: Encoded) -> None:
        """Append a chunk's documents to the shards and its bad records to the quarantine."""
        self.records += encoded.records
        for document in encoded.documents:
            self._route(document.route).add(document)
        for bad in encoded.bad:
            self._put_aside(encoded.chunk.piece, bad)
        if encoded.chunk.piece_end:
            self._inputs.append(encoded.chunk.piece_end)

    def _put_aside(self, index: int, bad: Bad) -> None:
        self.quarantined[bad.kind] += 1
        entry = quarantine_entry(self.unit.pieces[index], bad)
        self._quarantine.write(json.dumps(entry) + "\n")

    def finish(self) -> dict[str, Any]:
        """Close all shards; return what the unit's mark keeps."""
        for route in self._routes.values():
            route.close()
        self._quarantine.close()
        Path(self._quarantine.name).replace(self.folder / "quarantine.jsonl")
        shutil.rmtree(self.folder / "spool", ignore_errors=True)
        return {
            "records": self.records,
            "quarantined": dict(sorted(self.quarantined.items())),
            "inputs": self._inputs,
            "routes": {name: self._routes[name].shards for name in sorted(self._routes)},
        }

    def abort(self) -> None:
        """Drop what is not in a finished shard."""
        self._quarantine.close()
        for route in self._routes.values():
            route.abort()
