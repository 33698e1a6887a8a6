"""The end of a tokenization: shards of all units get their final names, every folder its manifest.

Each step may be repeated, so a kill in the middle only means that the next start goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from data_prep.reading.places import join_reports, lines_before
from data_prep.tokens.job import Job
from latentpt.data.errors import DataError
from latentpt.data.indexed import bin_and_idx, token_dtype
from latentpt.data.manifest import Counts, Manifest, TokenizerRecord, write_json
from latentpt.data.tokenizer import Tokenizer

QUARANTINE = "quarantine.jsonl"


def check_share_of_bad(bad: int, records: int, job: Job) -> None:
    """Raise DataError when more of the records are bad than the job allows."""
    if records and bad / records > job.max_bad:
        raise DataError(
            f"{bad} of {records} records are bad ({bad / records:.3%}), more than --max-bad {job.max_bad:.3%}; "
            f"see {QUARANTINE} in {job.folder} or in the folders of {job.work}"
        )


def finish(job: Job, tokenizer: Tokenizer, eod_id: int) -> bool:
    """Assemble the output if every unit is done; return whether it is.

    Several processes may try at once: one does it. Raises DataError when too many records are bad, when there is
    no document at all or when documents and quarantined records do not add up to the records read.
    """
    try:
        lock = (job.work / "finish.lock").open("w")
    except FileNotFoundError:  # another process has just finished
        return job.finished_mark.is_file()
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if job.finished_mark.is_file():
            return True
        paths = [job.unit_folder(unit) / "unit.json" for unit in job.units]
        if not all(path.is_file() for path in paths):
            return False
        units = [json.loads(path.read_text()) for path in paths]
        _assemble(job, units, tokenizer, eod_id)
    shutil.rmtree(job.work, ignore_errors=True)
    return True


def _assemble(job: Job, units: list[dict[str, Any]], tokenizer: Tokenizer, eod_id: int) -> None:
    records = sum(unit["records"] for unit in units)
    quarantined: Counter[str] = Counter()
    shards: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    for unit, summary in zip(job.units, units, strict=True):
        quarantined.update(summary["quarantined"])
        for route, entries in summary["routes"].items():
            shards[route] += [
                (job.unit_folder(unit) / route / f"{i:05d}", entry) for i, entry in enumerate(entries)
            ]
    _gather_quarantine(job, units, quarantined)
    check_share_of_bad(quarantined.total(), records, job)
    documents = sum(entry["info"]["documents"] for entries in shards.values() for _, entry in entries)
    if documents + quarantined.total() != records:
        raise DataError(
            f"{job.folder}: {records} records were read, but {documents} documents and {quarantined.total()} quarantined "
            "records do not add up to them; delete the folder and start again"
        )
    if not documents:
        shutil.rmtree(job.work)
        with contextlib.suppress(OSError):  # a quarantine stays, and so its folder
            job.folder.rmdir()
        raise DataError(f"{job.units[0].pieces[0].file}: the input holds no document")
    record = TokenizerRecord(
        file="tokenizer" + tokenizer.path.suffix,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eod_id=eod_id,
    )
    common = {
        "tokenizer": record,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "records_in": records,
        "quarantined": dict(sorted(quarantined.items())),
        "inputs": [entry for unit in units for entry in unit["inputs"]],
        "options": job.options(),
    }
    totals = {route: _write_folder(job, route, shards[route], documents, common) for route in sorted(shards)}
    if job.several_folders:
        folders = {route: counts.model_dump() for route, counts in totals.items()}
        write_json(job.folder / job.finished_mark.name, {"folders": folders, "options": job.options()})


def _gather_quarantine(job: Job, units: list[dict[str, Any]], quarantined: Counter[str]) -> None:
    if not quarantined:
        return
    side = job.folder / (QUARANTINE + ".tmp")
    with side.open("wb") as file:
        ranges = (
            (entry["file"], entry["start"], entry["lines"]) for unit in units for entry in unit["inputs"]
        )
        parts = (job.unit_folder(unit) / QUARANTINE for unit in job.units)
        join_reports(parts, file, lines_before(ranges))
    side.replace(job.folder / QUARANTINE)


def _write_folder(
    job: Job, route: str, shards: list[tuple[Path, dict[str, Any]]], documents: int, common: dict[str, Any]
) -> Counts:
    """Move a route's shards to their final names and write tokenizer and manifest beside them."""
    folder = job.folder / route
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tmp"):
        stale.unlink()
    infos, sources = [], defaultdict[str, Counts](Counts)
    for number, (prefix, entry) in enumerate(shards):
        name = f"{job.name}-{number:05d}-of-{len(shards):05d}"
        for source, target in zip(bin_and_idx(prefix), bin_and_idx(folder / name), strict=True):
            if source.exists() or not target.exists():  # else it was moved before a kill
                source.replace(target)
        infos.append({**entry["info"], "name": name})
        for key, counts in entry["sources"].items():
            sources[key] += Counts(**counts)
    total = sum(sources.values(), Counts())
    shutil.copyfile(job.encode.tokenizer, folder / common["tokenizer"].file)
    Manifest(
        **common,
        counts=total,
        sources=dict(sorted(sources.items())),
        shards=infos,
        records_elsewhere=documents - total.documents,
    ).write(folder)
    return total
