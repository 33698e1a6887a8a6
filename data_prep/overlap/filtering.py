"""Writing a corpus without some of its documents: what dedup and decontaminate share.

OUTPUT/part-00000.jsonl.zst   kept documents of unit 0, JSON records as they were read
OUTPUT/removed.jsonl          every document removed: file, line, source and why
OUTPUT/quarantine.jsonl       bad records, if there are any
OUTPUT/report.json            counts by source; kept + removed + quarantined = records, or nothing is written
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zstandard

from data_prep.reading.bad import Bad, BadRecordError, bad, quarantine_entry
from data_prep.reading.chunks import Chunk, unit_chunks
from data_prep.reading.documents import load_text
from data_prep.reading.inputs import Unit
from data_prep.reading.parsing import Document
from data_prep.reading.places import join_reports, lines_before
from data_prep.reading.records import ReadOptions, Record
from data_prep.work.executors import Report, chunk_results
from data_prep.work.outputs import PLAN, Plan, check_writable, claimed, join_plan, work_folder
from data_prep.work.progress import Tick
from latentpt.data.errors import DataError
from latentpt.data.manifest import write_json

REPORT = "report.json"
_COUNTS = ("kept", "kept_bytes", "removed", "quarantined")

Result = dict[str, Any]
Reason = Mapping[str, Any]
Judge = Callable[[int, str], Reason | None]
"""Why a document, given by its record's number in the unit and its text, is removed; None keeps it."""


@dataclass
class Judged:
    """What became of a chunk."""

    chunk: Chunk
    records: int
    kept: bytes
    removed: list[dict[str, Any]]
    bad: list[Bad]
    counts: dict[str, Counter[str]]


@dataclass(frozen=True)
class Filter:
    """Judges the documents of chunks; one lives in every worker."""

    options: ReadOptions
    judge: Judge

    def __call__(self, chunk: Chunk) -> Judged:
        """The records to keep of a chunk, and what is to be said of the others."""
        kept: list[bytes] = []
        judged = Judged(
            replace(chunk, records=[]), len(chunk.records), b"", [], [], {name: Counter() for name in _COUNTS}
        )
        counts = judged.counts
        for number, record in enumerate(chunk.records, start=chunk.first):
            raw = record.raw.read_bytes() if isinstance(record.raw, Path) else record.raw
            head = record._replace(raw=raw)
            try:
                document, text = load_text(record, chunk.format, self.options)
            except BadRecordError as error:
                judged.bad.append(bad(head, error))
                counts["quarantined"][error.kind] += 1
                continue
            if (reason := self.judge(number, text)) is not None:
                judged.removed.append({"line": record.line, "source": document.source, **reason})
                counts["removed"][document.source] += 1
            else:
                kept.append(self._record(head, chunk, document, text))
                counts["kept"][document.source] += 1
                counts["kept_bytes"][document.source] += document.text_bytes
        judged.kept = b"".join(kept)
        return judged

    def _record(self, record: Record, chunk: Chunk, document: Document, text: str) -> bytes:
        if chunk.format in ("jsonl", "json") and isinstance(record.raw, bytes):
            return record.raw.strip().replace(b"\n", b" ") + b"\n"
        made: dict[str, Any] = {}
        _put(made, self.options.text_field, text)
        _put(made, self.options.source_field, document.source)
        return json.dumps(made, ensure_ascii=False).encode() + b"\n"


def _put(record: dict[str, Any], path: str, value: str) -> None:
    *outer, last = path.split(".")
    for key in outer:
        record = record.setdefault(key, {})
    record[last] = value


def filter_unit(
    unit: Unit,
    options: ReadOptions,
    folder: Path,
    make: Callable[[], Filter],
    helpers: int,
    report: Report,
) -> Result:
    """Write a unit's kept documents and the reasons for the others into `folder`; return the counts."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTS}
    records, lines = 0, []
    with ExitStack() as stack:
        part = stack.enter_context((folder / "part.jsonl.zst").open("wb"))
        kept = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(part))
        removed, quarantine = (
            stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8"))
            for name in ("removed", "quarantine")
        )
        for judged in chunk_results(make, unit_chunks(unit, options, folder / "spool"), helpers):
            piece = unit.pieces[judged.chunk.piece]
            kept.write(judged.kept)
            for entry in judged.removed:
                removed.write(json.dumps({"file": piece.file, "start": piece.start, **entry}) + "\n")
            for entry in judged.bad:
                quarantine.write(json.dumps(quarantine_entry(piece, entry)) + "\n")
            for name, counter in counts.items():
                counter.update(judged.counts[name])
            records += judged.records
            if end := judged.chunk.piece_end:
                lines.append([end["file"], end["start"], end["lines"]])
            good = judged.records - len(judged.bad)
            text_bytes = judged.counts["kept_bytes"].total()
            report(Tick(judged.chunk.bytes_read, judged.records, good, text_bytes))
    shutil.rmtree(folder / "spool", ignore_errors=True)
    return {"records": records, "lines": lines, **{name: dict(counter) for name, counter in counts.items()}}


def gather(
    units: Sequence[tuple[Path, Result]], output: Path, plan: Plan, details: Mapping[str, Any]
) -> Result:
    """Join what the units wrote, each in its folder, to the folder `output`; raises DataError if a record was lost.

    Returns the report, which is written too.
    """
    total: dict[str, Counter[str]] = {name: Counter() for name in _COUNTS}
    for _, result in units:
        for name, counter in total.items():
            counter.update(result[name])
    records = sum(result["records"] for _, result in units)
    if sum(total[name].total() for name in ("kept", "removed", "quarantined")) != records:
        raise DataError(
            f"{output}: kept, removed and quarantined documents do not add up to the {records} records"
        )
    output.mkdir(exist_ok=True)
    before = lines_before(
        (file, start, count) for _, result in units for file, start, count in result["lines"]
    )
    for name in ("removed", "quarantine"):
        with (output / f"{name}.jsonl").open("wb") as joined:
            join_reports((folder / f"{name}.jsonl" for folder, _ in units), joined, before)
    if not total["quarantined"]:
        (output / "quarantine.jsonl").unlink()
    for number, (folder, _) in enumerate(units):
        part = folder / "part.jsonl.zst"
        if part.exists():  # else it was moved before a kill
            part.replace(output / f"part-{number:05d}.jsonl.zst")
    counts = {name: dict(sorted(counter.items())) for name, counter in total.items()}
    report = {"records": records, **counts, **details, **plan.as_json()}
    write_json(output / REPORT, report)
    return report


@contextmanager
def filtered_output(output: Path, plan: Plan) -> Iterator[Path | None]:
    """A folder for the work beside `output`, which takes its folder `output` when the block ends well.

    Gives None when `output` is there already and made of the same. A block that does not end well leaves its work for
    the next start. Raises DataError when `output`, or work that was begun, is of something else.
    """
    work = work_folder(output)
    if output.exists():
        path = output / REPORT
        if not path.is_file():
            raise DataError(f"{output}: exists already; name another output or delete it")
        if reason := plan.change(json.loads(path.read_text())):
            raise DataError(f"{output}: exists already and {reason}; name another output or delete it")
        shutil.rmtree(work, ignore_errors=True)  # a kill may have left it
        yield None
        return
    check_writable(work, None if (work / PLAN).is_file() else lambda _: False)
    join_plan(work, plan, output)
    with claimed(work / "lock", output):
        yield work
        (work / "output").replace(output)
    shutil.rmtree(work, ignore_errors=True)


def print_report(output: Path, report: Result) -> None:
    """Say what was kept and removed, by source, and what became of the records."""
    print(f"{'source':30} {'kept':>10} {'removed':>10}")
    for source in sorted({*report["kept"], *report["removed"]}):
        print(f"{source[:30]:30} {report['kept'].get(source, 0):10,} {report['removed'].get(source, 0):10,}")
    kept, removed, bad = (sum(report[name].values()) for name in ("kept", "removed", "quarantined"))
    print(f"{'all':30} {kept:10,} {removed:10,}")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report["quarantined"].items())
    print(
        f"{output}: {report['records']:,} records read, {kept:,} kept, {removed:,} removed, {bad:,} quarantined"
        + (f" ({kinds}; see quarantine.jsonl)" if bad else "")
    )
