"""verify: every promise a shard folder makes, checked against its bytes."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

from data_prep.commands.inspect import token_counts
from latentpt.data.batches import open_folder, shard_folders
from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard
from latentpt.data.manifest import Manifest, ShardInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("path", help="shard folder, folder of shard folders, or a .bin/.idx pair")
    parser.add_argument("--vocab-size", type=int, help="ids must be below it (default: the manifest's)")
    parser.add_argument(
        "--eod-id", type=int, help="id that must end every document (default: the manifest's)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command; raises DataError with the first broken promise of each folder."""
    problems = []
    for folder in shard_folders(Path(arguments.path)):
        problems += list(check(folder, arguments.vocab_size, arguments.eod_id))
    if problems:
        raise DataError("; ".join(problems))


def check(path: Path, vocab_size: int | None = None, eod_id: int | None = None) -> Iterator[str]:
    """What is wrong with a shard folder or a pair, one sentence each; prints what is right.

    Headers, sizes and offsets are checked by opening the shards; then hashes, counts, ids and document ends.
    """
    manifest, shards = open_folder(path)
    if manifest:
        vocab_size = manifest.tokenizer.vocab_size if vocab_size is None else vocab_size
        eod_id = manifest.tokenizer.eod_id if eod_id is None and manifest.ends_marked else eod_id
        yield from _check_manifest(path, manifest)
        for shard, info in zip(shards, manifest.shards, strict=True):
            yield from _check_hashes(shard, info)
    for shard in shards:
        problems = [*_check_ids(shard, vocab_size), *_check_ends(shard, eod_id)]
        yield from problems
        if not problems:
            print(f"{shard.prefix}: {shard.num_documents:,} documents, {shard.num_tokens:,} tokens, good")


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


def _check_hashes(shard: Shard, info: ShardInfo) -> Iterator[str]:
    for path, expected in ((shard.bin_path, info.bin_sha256), (shard.idx_path, info.idx_sha256)):
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
