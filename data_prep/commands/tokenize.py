"""tokenize: raw text into shards, the same bytes on any number of workers, tasks or starts."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.commands.arguments import (
    add_executor_arguments,
    add_read_arguments,
    add_unit_size,
    amount,
    read_options,
    share,
    task,
)
from data_prep.reading.chunks import unit_chunks
from data_prep.reading.inputs import Unit, describe, files_of, find_inputs, plan_units
from data_prep.tokens.assembly import check_share_of_bad, finish
from data_prep.tokens.encoding import Encoded, EncodeOptions, encoder_of
from data_prep.tokens.fast import BACKENDS
from data_prep.tokens.job import FOLDERS, QUARANTINE, Job
from data_prep.tokens.unit_writer import UnitWriter, finished_records
from data_prep.work.executors import Report, chunk_results
from data_prep.work.outputs import PLAN, Plan, check_name, check_writable, claimed, join_plan
from data_prep.work.progress import Progress, Tick
from latentpt.data.errors import DataError
from latentpt.data.manifest import FILE_NAME, WORK, read_manifest

_JUDGED_FROM = 1_000  # records after which the share of bad ones means something


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_read_arguments(parser)
    parser.add_argument(
        "--tokenizer", required=True, help="tokenizer.json (Hugging Face) or .model (sentencepiece)"
    )
    parser.add_argument("--eod", help="text of the end-of-document token (default: the tokenizer's own)")
    parser.add_argument("--bos", help="text of a token to start every document with (default: none)")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what encodes: gigatoken, the tokenizer's own library (reference), or the first that can (default: auto)",
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--name", help="first part of the shards' names (default: the output folder's name)")
    add_executor_arguments(parser)
    parser.add_argument(
        "--shard-tokens", type=amount, default="500M", help="most tokens of a shard (default: 500M)"
    )
    add_unit_size(parser)
    parser.add_argument(
        "--split-by-source", action="store_true", help="write one folder for each value of --source-field"
    )
    parser.add_argument(
        "--held-out",
        type=share,
        default=0.0,
        help="share of documents for a folder 'validation', such as 1%%",
    )
    parser.add_argument(
        "--max-bad",
        type=share,
        help="stop when more of the records are bad, such as 0.1%% (default: stop when none of the first is good)",
    )
    parser.add_argument(
        "--task", type=task, help="do only units i, i + n, ... of a job array, given as i/n with i from 0"
    )
    parser.add_argument(
        "--hash-inputs",
        action="store_true",
        help="compare the contents of the inputs with those of a finished output, not their times",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    job = make_job(arguments)
    files = find_inputs(arguments.input)
    units = plan_units(files, job.unit_size)
    if arguments.dry_run:
        _describe(job, units)
    else:
        tokenize(job, units, arguments.workers, arguments.task, arguments.executor, arguments.hash_inputs)


def make_job(arguments: argparse.Namespace) -> Job:
    """The job that the command line describes."""
    encode_options = EncodeOptions(
        tokenizer=arguments.tokenizer,
        eod=arguments.eod,
        bos=arguments.bos,
        backend=arguments.backend,
        read=read_options(arguments),
        split_by_source=arguments.split_by_source,
        held_out=arguments.held_out,
    )
    return Job(
        output=arguments.output,
        name=check_name(arguments.name or Path(arguments.output).resolve().name),
        encode=encode_options,
        tokenizer_sha256=encoder_of(encode_options).tokenizer.sha256,
        shard_tokens=arguments.shard_tokens,
        unit_size=arguments.unit_size,
        max_bad=arguments.max_bad,
    )


def _describe(job: Job, units: Sequence[Unit]) -> None:
    size = sum(unit.size for unit in units)
    print(f"{len(files_of(units))} input files, {size / 1e6:,.1f} MB, in {len(units)} units of work")
    for unit in units:
        pieces = ", ".join(f"{piece.file}[{piece.start}:{piece.end}]" for piece in unit.pieces)
        print(f"  unit {unit.index}: {unit.size / 1e6:,.1f} MB: {pieces}")
    print(f"would write shards of at most {job.shard_tokens:,} tokens named {job.name}-* to {job.folder}")


def tokenize(
    job: Job,
    units: Sequence[Unit],
    workers: int = 1,
    part: tuple[int, int] | None = None,
    executor: str = "local",
    hash_inputs: bool = False,
) -> None:
    """Do the units of `part` (task i of n) that are not done yet; assemble the output once all units are done.

    `executor` is local (with `workers` processes) or ray (one task a unit). A finished output is compared with what
    is asked for, with the contents of the inputs if `hash_inputs`.

    Raises DataError for anything the user must mend; what is finished stays for the next start.
    """
    encoder = encoder_of(job.encode)  # before anything is written: tries the tokenizer and its fast encoder
    plan = Plan(job.options(), describe(files_of(units)))
    if _is_finished(job, plan, hash_inputs):
        shutil.rmtree(job.work, ignore_errors=True)  # a kill may have left it
        print(f"{job.folder}: is finished already")
        return
    check_writable(job.folder, None if (job.work / PLAN).is_file() else _is_ours)
    join_plan(job.work, plan, job.folder)
    index, count = part or (0, 1)
    with claimed(job.work / f"task-{index}-of-{count}.lock", job.folder):
        do_units(job, [unit for unit in units if unit.index % count == index], workers, executor)
    outcome = finish(job, units, plan, encoder.tokenizer, encoder.eod_id, workers)
    if outcome:
        print(f"{job.folder}: finished; {outcome}")
    elif not job.finished_mark.is_file():
        print(f"{job.folder}: task {index}/{count} is done, others are not yet")


def _is_ours(path: Path) -> bool:
    return path.name in (WORK, QUARANTINE)


def _is_finished(job: Job, plan: Plan, hash_inputs: bool) -> bool:
    """Whether the output is there and made of the same; raises DataError when it is made of something else."""
    mark = next((job.folder / name for name in (FILE_NAME, FOLDERS) if (job.folder / name).is_file()), None)
    if mark is None:
        return False
    made = json.loads(mark.read_text())
    if "options" not in made or "name" not in made["options"]:
        raise DataError(f"{job.folder}: holds shards that this command has not made; name another output")
    earlier = {
        "options": made["options"],
        "inputs": made.get("inputs" if mark.name == FOLDERS else "input_files"),
    }
    if not earlier["inputs"]:  # made before inputs were kept
        earlier["inputs"] = plan.inputs
    hashes = _hashes(job) if hash_inputs else None
    if reason := plan.change(earlier, hashes):
        raise DataError(f"{job.folder}: {reason}; name another output, or delete that one")
    return True


def _hashes(job: Job) -> dict[str, str]:
    """Hashes of the inputs that were read as a whole, by a manifest."""
    manifest = next(iter(sorted(job.folder.rglob(FILE_NAME))))
    pieces = Counter(entry["file"] for entry in read_manifest(manifest.parent).inputs)
    return {
        entry["file"]: entry["sha256"]
        for entry in read_manifest(manifest.parent).inputs
        if pieces[entry["file"]] == 1
    }


def do_units(job: Job, units: Sequence[Unit], workers: int, executor: str = "local") -> None:
    """Tokenize `units` into their folders, but for what is finished there."""
    with Progress(sum(unit.size for unit in units)) as progress:
        work = job.units.run(
            partial(_do_unit, job),
            [(unit.index, unit) for unit in units],
            workers,
            executor,
            progress,
            partial(_watch, job, progress),
        )
        for _ in work:
            pass


def _watch(job: Job, progress: Progress, tick: Tick) -> None:
    """Count what was done; stop when too many records are bad, or all."""
    progress.add(tick)
    done = progress.done
    if done.records < _JUDGED_FROM:
        return
    if job.max_bad is not None:
        check_share_of_bad(done.records - done.documents, done.records, job)
    elif not done.documents:
        raise DataError(
            f"none of the first {done.records:,} records is a document; most often {done.reason}; say which field "
            "holds the text with --text-field, or --max-bad 100% if that is meant"
        )


def _do_unit(job: Job, unit: Unit, helpers: int, report: Report) -> dict[str, Any]:
    """Tokenize one unit; return what its mark keeps."""
    folder = job.units.folder(unit.index)
    encoder = encoder_of(job.encode)
    done = finished_records(folder)
    writer = UnitWriter(unit, folder, encoder.dtype, job.shard_tokens)
    work = ((chunk, done) for chunk in unit_chunks(unit, job.encode.read, folder / "spool"))
    try:
        for encoded in chunk_results(partial(encoder_of, job.encode), work, helpers):
            writer.add(encoded)
            report(_tick(encoded, encoder.dtype))
        return writer.finish()
    except BaseException:
        writer.abort()
        raise


def _tick(encoded: Encoded, dtype: np.dtype) -> Tick:
    reasons = Counter(entry.reason for entry in encoded.bad)
    return Tick(
        encoded.chunk.bytes_read,
        encoded.records,
        encoded.records - len(encoded.bad),
        sum(document.text_bytes for document in encoded.documents),
        sum(document.num_tokens(dtype) for document in encoded.documents),
        reasons.most_common(1)[0][0] if reasons else "",
    )
