"""tokenize: raw text into shards, the same bytes on any number of workers, tasks or starts."""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data_prep.commands.arguments import (
    add_executor_arguments,
    add_read_arguments,
    amount,
    read_options,
    share,
    task,
)
from data_prep.reading.inputs import Unit, find_inputs, plan_units
from data_prep.tokens.assembly import check_share_of_bad, finish
from data_prep.tokens.encoding import EncodeOptions, end_of_document
from data_prep.tokens.job import Job
from data_prep.tokens.unit_writer import UnitWriter, finished_records, unit_chunks
from data_prep.work.executors import Work, encode, results_of_units
from data_prep.work.progress import Progress
from latentpt.data.errors import DataError
from latentpt.data.indexed import token_dtype
from latentpt.data.manifest import Counts
from latentpt.data.tokenizer import load_tokenizer

_JUDGED_FROM = 10_000  # records after which the share of bad ones means something


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_read_arguments(parser)
    parser.add_argument(
        "--tokenizer", required=True, help="tokenizer.json (Hugging Face) or .model (sentencepiece)"
    )
    parser.add_argument("--eod", help="text of the end-of-document token (default: the tokenizer's own)")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--name", help="first part of the shards' names (default: the output folder's name)")
    add_executor_arguments(parser)
    parser.add_argument(
        "--shard-tokens", type=amount, default="500M", help="most tokens of a shard (default: 500M)"
    )
    parser.add_argument(
        "--unit-size",
        type=amount,
        default="256M",
        help="bytes of input done as one unit of work (default: 256M)",
    )
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
        default=1.0,
        help="stop when more of the records are bad, such as 0.1%% (default: 100%%)",
    )
    parser.add_argument(
        "--task", type=task, help="do only units i, i + n, ... of a job array, given as i/n with i from 0"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    job = make_job(arguments)
    if arguments.dry_run:
        _describe(job)
    else:
        tokenize(job, arguments.workers, arguments.task, arguments.executor)


def make_job(arguments: argparse.Namespace) -> Job:
    """The job that the command line describes; reads names and sizes of the inputs."""
    encode_options = EncodeOptions(
        tokenizer=arguments.tokenizer,
        eod=arguments.eod,
        read=read_options(arguments),
        split_by_source=arguments.split_by_source,
        held_out=arguments.held_out,
    )
    units = plan_units(find_inputs(arguments.input), arguments.unit_size)
    return Job(
        output=arguments.output,
        name=arguments.name or Path(arguments.output).resolve().name,
        units=tuple(units),
        encode=encode_options,
        tokenizer_sha256=load_tokenizer(arguments.tokenizer).sha256,
        shard_tokens=arguments.shard_tokens,
        unit_size=arguments.unit_size,
        max_bad=arguments.max_bad,
    )


def _describe(job: Job) -> None:
    size = sum(unit.size for unit in job.units)
    files = {piece.file for unit in job.units for piece in unit.pieces}
    print(f"{len(files)} input files, {size / 1e6:,.1f} MB, in {len(job.units)} units of work")
    for unit in job.units:
        pieces = ", ".join(f"{piece.file}[{piece.start}:{piece.end}]" for piece in unit.pieces)
        print(f"  unit {unit.index}: {unit.size / 1e6:,.1f} MB: {pieces}")
    print(f"would write shards of at most {job.shard_tokens:,} tokens named {job.name}-* to {job.folder}")


def tokenize(
    job: Job, workers: int = 1, part: tuple[int, int] | None = None, executor: str = "local"
) -> None:
    """Do the units of `part` (task i of n) that are not done yet; assemble the output once all units are done.

    `executor` is local (with `workers` processes) or ray (one task a unit).

    Raises DataError for anything the user must mend; what is finished stays for the next start.
    """
    tokenizer = load_tokenizer(job.encode.tokenizer)
    eod_id = end_of_document(tokenizer, job.encode.eod)
    if job.prepare():
        shutil.rmtree(job.work, ignore_errors=True)  # a kill may have left it
        print(f"{job.folder}: is finished already")
        return
    index, count = part or (0, 1)
    with _claim(job, index, count):
        todo = [unit for unit in job.units if unit.index % count == index]
        if executor == "ray":
            _do_units_on_ray(job, todo)
        else:
            do_units(job, todo, workers)
    if finish(job, tokenizer, eod_id):
        print(f"{job.folder}: finished")
    else:
        print(f"{job.folder}: task {index}/{count} is done, others are not yet")


@contextmanager
def _claim(job: Job, index: int, count: int) -> Iterator[None]:
    """Keep a second process from doing the same part at the same time; the lock ends with the process."""
    with (job.work / f"task-{index}-of-{count}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{job.folder}: another process is writing it") from None
        yield


def do_units(job: Job, units: Sequence[Unit], workers: int) -> None:
    """Tokenize `units` into their folders of the work folder, but for what is finished there."""
    todo = [unit for unit in units if not (job.unit_folder(unit) / "unit.json").is_file()]
    dtype = token_dtype(load_tokenizer(job.encode.tokenizer).vocab_size)
    writer: UnitWriter | None = None
    bad = records = 0
    with Progress(sum(unit.size for unit in units)) as progress:
        progress.skip(sum(unit.size for unit in units) - sum(unit.size for unit in todo))
        try:
            for encoded in encode(_work(job, todo), job.encode, workers):
                writer = writer or UnitWriter(job, job.units[encoded.chunk.unit], dtype)
                writer.add(encoded)
                tokens = sum(document.num_tokens(dtype) for document in encoded.documents)
                text_bytes = sum(document.text_bytes for document in encoded.documents)
                progress.add(encoded.chunk.bytes_read, len(encoded.documents), tokens, text_bytes)
                bad, records = bad + len(encoded.bad), records + encoded.records
                if records >= _JUDGED_FROM:
                    check_share_of_bad(bad, records, job)
                if encoded.chunk.last:
                    writer.finish()
                    writer = None
        finally:
            if writer:
                writer.abort()


def _do_units_on_ray(job: Job, units: Sequence[Unit]) -> None:
    with Progress(sum(unit.size for unit in units)) as progress:
        results = results_of_units(partial(_do_unit, job), units, "ray", 1)
        for unit, counts in zip(units, results, strict=True):
            progress.add(unit.size, counts.documents, counts.tokens, counts.text_bytes)


def _do_unit(job: Job, unit: Unit) -> Counts:
    """Tokenize one unit by itself; return what is in its shards."""
    do_units(job, [unit], workers=1)
    summary = json.loads((job.unit_folder(unit) / "unit.json").read_text())
    shards = [shard for shards in summary["routes"].values() for shard in shards]
    return sum((Counts(**counts) for shard in shards for counts in shard["sources"].values()), Counts())


def _work(job: Job, units: Sequence[Unit]) -> Iterator[Work]:
    for unit in units:
        folder = job.unit_folder(unit)
        done = finished_records(folder)
        for chunk in unit_chunks(unit, job.encode.read, folder / "spool"):
            yield chunk, done
