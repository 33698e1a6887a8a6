"""The end of a tokenization: the units' shards become the output's, every folder gets its manifest.

Shards of consecutive units are merged up to the size of a shard. Each step may be repeated, so a kill in the middle
only means that the next start goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.reading.inputs import Unit
from data_prep.reading.places import join_reports, lines_before
from data_prep.tokens.job import QUARANTINE, Job
from data_prep.work.executors import Report
from data_prep.work.outputs import Plan
from data_prep.work.progress import Progress, Tick
from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard, ShardWriter, bin_and_idx, token_dtype
from latentpt.data.manifest import Counts, Manifest, TokenizerRecord, write_json
from latentpt.data.tokenizer import Tokenizer

Summary = dict[str, Any]
"""What the mark of a unit says."""


@dataclass(frozen=True)
class Outcome:
    """What became of the records."""

    records: int
    documents: int
    quarantined: dict[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.quarantined.items())
        bad = sum(self.quarantined.values())
        return f"{self.records:,} records read, {self.documents:,} kept, {bad:,} quarantined" + (
            f" ({kinds}; see {QUARANTINE})" if bad else ""
        )


def check_share_of_bad(bad: int, records: int, job: Job) -> None:
    """Raise DataError when more of the records are bad than the job allows."""
    if records and job.max_bad is not None and bad / records > job.max_bad:
        raise DataError(
            f"{bad} of {records} records are bad ({bad / records:.3%}), more than --max-bad {job.max_bad:.3%}; "
            f"see {QUARANTINE} in {job.folder} or in the folders of {job.work}"
        )


def finish(
    job: Job, units: Sequence[Unit], plan: Plan, tokenizer: Tokenizer, eod_id: int, workers: int = 1
) -> Outcome | None:
    """Assemble the output if every unit is done, and say what became of the records; None if units are missing.

    Several processes may try at once: one does it. Raises DataError when too many records are bad, when there is
    no document at all or when documents and quarantined records do not add up to the records read.
    """
    try:
        lock = (job.work / "finish.lock").open("w")
    except FileNotFoundError:  # another process has just finished
        return None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if job.finished_mark.is_file() or not all(job.units.is_done(unit.index) for unit in units):
            return None
        summaries = [job.units.result(unit.index) for unit in units]
        outcome = _outcome(summaries)
        _gather_quarantine(job, summaries, outcome)
        _check(job, outcome, units[0].pieces[0].file)
        _write_folders(job, summaries, plan, outcome, tokenizer, eod_id, workers)
    shutil.rmtree(job.work, ignore_errors=True)
    return outcome


def _outcome(summaries: Sequence[Summary]) -> Outcome:
    quarantined: Counter[str] = Counter()
    for summary in summaries:
        quarantined.update(summary["quarantined"])
    documents = sum(
        entry["info"]["documents"]
        for summary in summaries
        for entries in summary["routes"].values()
        for entry in entries
    )
    return Outcome(
        sum(summary["records"] for summary in summaries), documents, dict(sorted(quarantined.items()))
    )


def _check(job: Job, outcome: Outcome, first_file: str) -> None:
    bad = sum(outcome.quarantined.values())
    check_share_of_bad(bad, outcome.records, job)
    if outcome.documents + bad != outcome.records:
        raise DataError(
            f"{job.folder}: {outcome.records} records were read, but {outcome.documents} documents and {bad} quarantined "
            "records do not add up to them; delete the folder and start again"
        )
    if not outcome.documents:
        shutil.rmtree(job.work)
        with contextlib.suppress(OSError):  # a quarantine stays, and so its folder
            job.folder.rmdir()
        raise DataError(f"{first_file}: the input holds no document; {outcome}")


def _gather_quarantine(job: Job, summaries: Sequence[Summary], outcome: Outcome) -> None:
    if not outcome.quarantined:
        return
    side = job.folder / (QUARANTINE + ".tmp")
    with side.open("wb") as file:
        ranges = (
            (entry["file"], entry["start"], entry["lines"])
            for summary in summaries
            for entry in summary["inputs"]
        )
        parts = (job.units.folder(index) / QUARANTINE for index in range(len(summaries)))
        join_reports(parts, file, lines_before(ranges))
    side.replace(job.folder / QUARANTINE)


# Merging.


@dataclass(frozen=True)
class Group:
    """Consecutive shards of one folder that become one."""

    route: str
    target: str
    """Prefix of the pair to write."""
    sources: tuple[str, ...]
    """Prefixes of the pairs."""
    entries: tuple[dict[str, Any], ...]
    """What their marks say."""
    size: int
    """Bytes of their ids."""


def _groups(job: Job, summaries: Sequence[Summary], dtype: np.dtype) -> list[Group]:
    """The shards of the output, folder by folder: as few as hold at most `shard_tokens` each in the units' order."""
    routes: defaultdict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for index, summary in enumerate(summaries):
        for route, entries in summary["routes"].items():
            for number, entry in enumerate(entries):
                routes[route].append((str(job.units.folder(index) / route / f"{number:05d}"), entry))
    groups: list[Group] = []
    for route in sorted(routes):
        for together in _filled(routes[route], job.shard_tokens):
            sources, entries = zip(*together, strict=True)
            tokens = sum(entry["info"]["tokens"] for entry in entries)
            target = str(job.merged.folder(len(groups)) / "shard")
            groups.append(Group(route, target, sources, entries, tokens * dtype.itemsize))
    return groups


def _filled(
    shards: Sequence[tuple[str, dict[str, Any]]], limit: int
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    together: list[tuple[str, dict[str, Any]]] = []
    tokens = 0
    for shard in shards:
        size = shard[1]["info"]["tokens"]
        if together and tokens + size > limit:
            yield together
            together, tokens = [], 0
        together.append(shard)
        tokens += size
    if together:
        yield together


def _merge(dtype: np.dtype, group: Group, _: int, report: Report) -> dict[str, Any]:
    """Make a group's pair; return its numbers. A single shard is moved, several are copied and deleted later."""
    report(Tick(group.size))
    if len(group.sources) == 1:
        _move(Path(group.sources[0]), Path(group.target))
        return dict(group.entries[0]["info"])
    with contextlib.ExitStack() as stack:
        writer = ShardWriter(group.target, dtype)
        stack.callback(writer.abort)
        for source in group.sources:
            writer.append(Shard(source))
        info = writer.close()
        stack.pop_all()
    return dataclasses.asdict(info)


def _move(source: Path, target: Path) -> None:
    for old, new in zip(bin_and_idx(source), bin_and_idx(target), strict=True):
        if old.exists() or not new.exists():  # else it was moved before a kill
            old.replace(new)


def _merged(job: Job, groups: Sequence[Group], dtype: np.dtype, workers: int) -> list[dict[str, Any]]:
    """Do all groups; return their numbers in order."""
    with Progress(sum(group.size for group in groups), "merging") as progress:
        for index, _ in job.merged.run(
            partial(_merge, dtype), list(enumerate(groups)), workers, "local", progress
        ):
            for source in groups[index].sources:
                for path in bin_and_idx(Path(source)):
                    path.unlink(missing_ok=True)
    return [job.merged.result(index) for index in range(len(groups))]


# The folders.


def _write_folders(
    job: Job,
    summaries: Sequence[Summary],
    plan: Plan,
    outcome: Outcome,
    tokenizer: Tokenizer,
    eod_id: int,
    workers: int,
) -> None:
    dtype = token_dtype(tokenizer.vocab_size)
    record = TokenizerRecord(
        file="tokenizer" + tokenizer.path.suffix,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eod_id=eod_id,
    )
    common = {
        "tokenizer": record,
        "dtype": dtype.name,
        "records_in": outcome.records,
        "quarantined": outcome.quarantined,
        "inputs": [entry for summary in summaries for entry in summary["inputs"]],
        "input_files": plan.inputs,
        "options": dict(plan.options),
    }
    groups = _groups(job, summaries, dtype)
    infos = _merged(job, groups, dtype, workers)
    by_route: defaultdict[str, list[tuple[Group, dict[str, Any]]]] = defaultdict(list)
    for group, info in zip(groups, infos, strict=True):
        by_route[group.route].append((group, info))
    totals = {
        route: _write_folder(job, route, shards, outcome.documents, tokenizer, common)
        for route, shards in by_route.items()
    }
    if job.several_folders:
        folders = {route: counts.model_dump() for route, counts in totals.items()}
        write_json(job.finished_mark, {"folders": folders, **plan.as_json()})


def _write_folder(
    job: Job,
    route: str,
    shards: Sequence[tuple[Group, dict[str, Any]]],
    documents: int,
    tokenizer: Tokenizer,
    common: dict[str, Any],
) -> Counts:
    """Move a route's shards to their final names and write tokenizer and manifest beside them."""
    folder = job.folder / route
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tmp"):
        stale.unlink()
    named, sources = [], defaultdict[str, Counts](Counts)
    for number, (group, info) in enumerate(shards):
        name = f"{job.name}-{number:05d}-of-{len(shards):05d}"
        _move(Path(group.target), folder / name)
        named.append({**info, "name": name})
        for entry in group.entries:
            for key, counts in entry["sources"].items():
                sources[key] += Counts(**counts)
    total = sum(sources.values(), Counts())
    shutil.copyfile(tokenizer.path, folder / common["tokenizer"].file)
    Manifest(
        **common,
        counts=total,
        sources=dict(sorted(sources.items())),
        shards=named,
        records_elsewhere=documents - total.documents,
    ).write(folder)
    return total
