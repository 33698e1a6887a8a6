"""verify: every promise a shard folder makes, checked against its bytes, shard by shard.

What is checked is noted in FOLDER/.verify while the command runs, where the folder can be written, so that the same
command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.commands.arguments import add_workers
from data_prep.commands.inspect import token_counts
from data_prep.work.executors import Report
from data_prep.work.outputs import Plan, join_plan
from data_prep.work.progress import Progress, Tick
from data_prep.work.stages import Stage
from latentpt.data.batches import open_folder, shard_folders
from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard, bin_and_idx
from latentpt.data.manifest import Manifest

_WORK = ".verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("path", help="shard folder, folder of shard folders, or a .bin/.idx pair")
    parser.add_argument("--vocab-size", type=int, help="ids must be below it (default: the manifest's)")
    parser.add_argument(
        "--eod-id", type=int, help="id that must end every document (default: the manifest's)"
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command; raises DataError with the broken promises of all folders."""
    problems = []
    for folder in shard_folders(Path(arguments.path)):
        problems += check(folder, arguments.vocab_size, arguments.eod_id, arguments.workers)
    if problems:
        raise DataError("; ".join(problems))


@dataclass(frozen=True)
class _Promise:
    """What is promised of a shard."""

    prefix: str
    size: int
    """Bytes of the .bin."""
    vocab_size: int | None
    eod_id: int | None
    hashes: tuple[str, str] | None
    """sha256 of .bin and .idx, by the manifest."""


def check(
    path: Path, vocab_size: int | None = None, eod_id: int | None = None, workers: int = 1
) -> list[str]:
    """What is wrong with a shard folder or a pair, one sentence each; prints what is right.

    Headers, sizes and offsets are checked by opening the shards; then hashes, counts, ids and document ends.
    """
    manifest, shards = open_folder(path)
    problems = []
    if manifest:
        vocab_size = manifest.tokenizer.vocab_size if vocab_size is None else vocab_size
        eod_id = manifest.tokenizer.eod_id if eod_id is None and manifest.ends_marked else eod_id
        problems += _check_manifest(path, manifest)
    infos: Sequence[Any] = manifest.shards if manifest else [None] * len(shards)
    promises = [
        _Promise(
            str(shard.prefix),
            shard.bin_path.stat().st_size,
            vocab_size,
            eod_id,
            (info.bin_sha256, info.idx_sha256) if info else None,
        )
        for shard, info in zip(shards, infos, strict=True)
    ]
    with _noted(path, promises) as stage, Progress(sum(p.size for p in promises), "verifying") as progress:
        for _ in stage.run(_check_shard, list(enumerate(promises)), workers, "local", progress):
            pass
        results = [stage.result(number) for number in range(len(promises))]
    for promise, result in zip(promises, results, strict=True):
        problems += result["problems"]
        if not result["problems"]:
            print(f"{promise.prefix}: {result['documents']:,} documents, {result['tokens']:,} tokens, good")
    return problems


@contextmanager
def _noted(path: Path, promises: Sequence[_Promise]) -> Iterator[Stage]:
    """Where to note what is checked: in the folder, or for this run only where it cannot be written."""
    if not path.is_dir() or not os.access(path, os.W_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        with tempfile.TemporaryDirectory() as folder:
            yield Stage(Path(folder), "shard")
        return
    work = path / _WORK
    times = [[file.name, file.stat().st_mtime_ns] for p in promises for file in bin_and_idx(Path(p.prefix))]
    asked = {"promises": [list(map(str, vars(promise).values())) for promise in promises], "times": times}
    try:
        join_plan(work, Plan(asked, []), path)
    except DataError:  # something has changed since: what was noted is worth nothing
        shutil.rmtree(work)
        join_plan(work, Plan(asked, []), path)
    yield Stage(work, "shard")
    shutil.rmtree(work)


def _check_shard(promise: _Promise, _: int, report: Report) -> dict[str, Any]:
    """Read a shard to its end; return what it holds and what is wrong with it."""
    shard = Shard(promise.prefix)
    problems = []
    if promise.hashes:
        problems += _check_hashes(shard, promise.hashes)
    problems += [*_check_ids(shard, promise.vocab_size), *_check_ends(shard, promise.eod_id)]
    report(Tick(promise.size, 0, shard.num_documents, 0, shard.num_tokens))
    return {"documents": shard.num_documents, "tokens": shard.num_tokens, "problems": problems}


def _check_manifest(path: Path, manifest: Manifest) -> Iterator[str]:
    for kind in ("documents", "tokens"):
        total, said = sum(getattr(info, kind) for info in manifest.shards), getattr(manifest.counts, kind)
        if total != said:
            yield f"{path}: the manifest counts {said} {kind}, its shards have {total}"
    out = manifest.counts.documents + manifest.records_elsewhere + sum(manifest.quarantined.values())
    if out != manifest.records_in:
        yield f"{path}: {manifest.records_in} records were read, but {out} were written or quarantined"
    tokenizer = manifest.tokenizer
    if tokenizer.file and sha256_of(path / tokenizer.file) != tokenizer.sha256:
        yield f"{path / tokenizer.file}: is not the tokenizer that made the shards"


def sha256_of(path: Path) -> str:
    """Hash of a file; raises DataError when it is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None


def _check_hashes(shard: Shard, hashes: tuple[str, str]) -> Iterator[str]:
    for path, expected in zip((shard.bin_path, shard.idx_path), hashes, strict=True):
        if sha256_of(path) != expected:
            yield f"{path}: its sha256 is not the manifest's; its content has changed"


def _check_ids(shard: Shard, vocab_size: int | None) -> Iterator[str]:
    largest = len(token_counts([shard])) - 1
    if vocab_size is not None and largest >= vocab_size:
        yield f"{shard.bin_path}: holds the id {largest}, outside the vocabulary of {vocab_size}"


def _check_ends(shard: Shard, eod_id: int | None) -> Iterator[str]:
    if eod_id is None:
        return
    for number, (start, end) in enumerate(shard.document_spans()):
        if start == end or shard.tokens[end - 1] != eod_id:
            yield f"{shard.bin_path}: document {number} does not end with the end-of-document token {eod_id}"
            return
