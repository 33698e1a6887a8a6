"""Writing a corpus without some of its documents: what dedup and decontaminate share.

OUTPUT/part-00000.jsonl.zst   kept documents of unit 0, JSON records as they were read
OUTPUT/removed.jsonl          every document removed: file, line, source and why
OUTPUT/quarantine.jsonl       bad records, if there are any
OUTPUT/report.json            counts by source; kept + removed + quarantined = records, or nothing is written
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

from data_prep.commands.arguments import add_executor_arguments, add_read_arguments, amount
from data_prep.reading.bad import quarantine_entry
from data_prep.reading.documents import Lines, TextDocument, read_pieces
from data_prep.reading.inputs import Unit
from data_prep.reading.places import join_reports, lines_before
from data_prep.reading.records import ReadOptions
from latentpt.data.errors import DataError
from latentpt.data.manifest import write_json

Judge = Callable[[int, TextDocument], Mapping[str, Any] | None]
"""Why a document, given with its number in the unit, is removed; None keeps it."""


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that filters a corpus."""
    add_read_arguments(parser)
    add_executor_arguments(parser)
    parser.add_argument(
        "--output", required=True, help="folder to write the kept documents and the report to"
    )
    parser.add_argument(
        "--unit-size",
        type=amount,
        default="256M",
        help="bytes of input done as one unit of work (default: 256M)",
    )


@contextmanager
def output_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name when the block ends well and is removed otherwise."""
    if output.exists():
        raise DataError(f"{output}: exists already; name another output or delete it")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def filter_unit(unit: Unit, options: ReadOptions, folder: Path, judge: Judge) -> dict[str, Any]:
    """Write a unit's kept documents and the reasons for the others into `folder`; return the counts."""
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("kept", "kept_bytes", "removed", "quarantined")
    }
    records = 0
    lines: Lines = []
    compressor = zstandard.ZstdCompressor(level=3)
    with (
        (folder / f"part-{unit.index:05d}.jsonl.zst").open("wb") as file,
        compressor.stream_writer(file) as kept,
        (folder / f"removed-{unit.index:05d}.jsonl").open("w", encoding="utf-8") as removed,
        (folder / f"quarantine-{unit.index:05d}.jsonl").open("w", encoding="utf-8") as quarantine,
    ):
        for number, (piece, entry) in enumerate(read_pieces(unit.pieces, options, lines)):
            records += 1
            if not isinstance(entry, TextDocument):
                quarantine.write(json.dumps(quarantine_entry(piece, entry)) + "\n")
                counts["quarantined"][entry.kind] += 1
            elif (reason := judge(number, entry)) is not None:
                where = {"file": piece.file, "start": piece.start, "line": entry.line, "source": entry.source}
                removed.write(json.dumps({**where, **reason}) + "\n")
                counts["removed"][entry.source] += 1
            else:
                kept.write(_record(entry, options))
                counts["kept"][entry.source] += 1
                counts["kept_bytes"][entry.source] += entry.text_bytes
    return {"records": records, "lines": lines, **{name: dict(counter) for name, counter in counts.items()}}


def _record(document: TextDocument, options: ReadOptions) -> bytes:
    if document.raw is not None:
        return document.raw.strip().replace(b"\n", b" ") + b"\n"
    record: dict[str, Any] = {}
    _put(record, options.text_field, document.text)
    _put(record, options.source_field, document.source)
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _put(record: dict[str, Any], path: str, value: str) -> None:
    *outer, last = path.split(".")
    for key in outer:
        record = record.setdefault(key, {})
    record[last] = value


def gather(folder: Path, results: list[dict[str, Any]], details: dict[str, Any]) -> dict[str, Any]:
    """Join what the units wrote and write the report; raises DataError if a record was lost."""
    total: dict[str, Counter[str]] = {
        name: Counter() for name in ("kept", "kept_bytes", "removed", "quarantined")
    }
    for result in results:
        for name, counter in total.items():
            counter.update(result[name])
    records = sum(result["records"] for result in results)
    if sum(total[name].total() for name in ("kept", "removed", "quarantined")) != records:
        raise DataError(
            f"{folder}: kept, removed and quarantined documents do not add up to the {records} records"
        )
    before = lines_before(entry for result in results for entry in result["lines"])
    for name in ("removed", "quarantine"):
        parts = sorted(folder.glob(f"{name}-*.jsonl"))
        with (folder / f"{name}.jsonl").open("wb") as joined:
            join_reports(parts, joined, before)
        for part in parts:
            part.unlink()
    if not total["quarantined"]:
        (folder / "quarantine.jsonl").unlink()
    report = {
        "records": records,
        **{name: dict(sorted(counter.items())) for name, counter in total.items()},
        **details,
    }
    write_json(folder / "report.json", report)
    return report


def print_report(report: dict[str, Any]) -> None:
    """Say what was kept and removed, by source."""
    print(f"{'source':30} {'kept':>10} {'removed':>10}")
    for source in sorted({*report["kept"], *report["removed"]}):
        print(f"{source[:30]:30} {report['kept'].get(source, 0):10,} {report['removed'].get(source, 0):10,}")
    print(f"{'all':30} {sum(report['kept'].values()):10,} {sum(report['removed'].values()):10,}")
    if report["quarantined"]:
        print("quarantined: " + ", ".join(f"{count} {kind}" for kind, count in report["quarantined"].items()))
