"""inspect: what a shard folder (or a single pair) holds, by source and by length."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentpt.data.batches import open_folder, shard_folders
from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard
from latentpt.data.manifest import Manifest
from latentpt.data.tokenizer import Tokenizer, load_tokenizer

_SPAN = 1 << 22  # tokens counted at a time
_BAR = 40  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("path", help="shard folder, folder of shard folders, or a .bin/.idx pair")
    parser.add_argument("--tokenizer", help="tokenizer to decode with (default: the folder's own)")
    parser.add_argument("--documents", type=int, default=3, help="first documents to show (default: 3)")
    parser.add_argument(
        "--characters", type=int, default=300, help="characters to show of each (default: 300)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    for folder in shard_folders(Path(arguments.path)):
        manifest, shards = open_folder(folder)
        print(f"{folder}: {len(shards)} shards of {shards[0].dtype if shards else 'nothing'}")
        if manifest:
            _print_manifest(manifest)
        lengths = np.concatenate([document_lengths(shard) for shard in shards])
        _print_lengths(lengths)
        _print_vocabulary(token_counts(shards), manifest)
        tokenizer = _tokenizer(arguments.tokenizer, folder, manifest)
        if tokenizer:
            _print_documents(shards, tokenizer, arguments.documents, arguments.characters)


def document_lengths(shard: Shard) -> NDArray[np.int64]:
    """Tokens of every document of a shard: [num_documents]."""
    return np.fromiter((end - start for start, end in shard.document_spans()), np.int64, shard.num_documents)


def token_counts(shards: list[Shard]) -> NDArray[np.int64]:
    """How often each id occurs, [largest id + 1]; raises DataError for a negative id."""
    counts = np.zeros(1, np.int64)
    for shard in shards:
        for start in range(0, shard.num_tokens, _SPAN):
            tokens = shard.tokens[start : start + _SPAN]
            if tokens.min() < 0:
                raise DataError(f"{shard.bin_path}: holds the negative id {tokens.min()}")
            here = np.bincount(tokens, minlength=len(counts))
            here[: len(counts)] += counts
            counts = here
    return counts


def _tokenizer(path: str | None, folder: Path, manifest: Manifest | None) -> Tokenizer | None:
    if path:
        return load_tokenizer(path)
    return load_tokenizer(folder) if manifest and manifest.tokenizer.file else None


def _print_manifest(manifest: Manifest) -> None:
    tokenizer = manifest.tokenizer
    print(f"tokenizer   {tokenizer.file}, {tokenizer.vocab_size} ids, end of document {tokenizer.eod_id}")
    bad = ", ".join(f"{count} {kind}" for kind, count in manifest.quarantined.items()) or "none"
    print(
        f"records     {manifest.records_in:,} read, {manifest.records_elsewhere:,} in other folders, quarantined: {bad}"
    )
    print(f"{'source':30} {'documents':>12} {'tokens':>16} {'share':>7} {'bytes/token':>11}")
    for name, counts in [*manifest.sources.items(), ("all", manifest.counts)]:
        per_token = (
            f"{counts.text_bytes / counts.tokens:11.3f}"
            if counts.text_bytes and counts.tokens
            else f"{'-':>11}"
        )
        part = counts.tokens / max(manifest.counts.tokens, 1)
        print(f"{name[:30]:30} {counts.documents:12,} {counts.tokens:16,} {part:7.2%} {per_token}")


def _print_lengths(lengths: NDArray[np.int64]) -> None:
    print(f"documents   {len(lengths):,}, tokens {lengths.sum():,}")
    if not len(lengths):
        return
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 0.99, 1]).astype(int)
    names = ("shortest", "25 %", "median", "75 %", "99 %", "longest")
    print(
        "lengths     " + ", ".join(f"{name} {value:,}" for name, value in zip(names, quantiles, strict=True))
    )
    powers = np.log2(np.maximum(lengths, 1)).astype(int)
    histogram = np.bincount(powers)
    for power, count in enumerate(histogram):
        if count:
            bar = "#" * max(1, round(_BAR * count / histogram.max()))
            print(f"  {2**power:>10,} .. {2 ** (power + 1) - 1:<10,} {count:>10,} {bar}")


def _print_vocabulary(counts: NDArray[np.int64], manifest: Manifest | None) -> None:
    size = manifest.tokenizer.vocab_size if manifest else len(counts)
    used = int((counts > 0).sum())
    print(f"vocabulary  {used:,} of {size:,} ids occur ({used / size:.1%}), the largest is {len(counts) - 1}")


def _print_documents(shards: list[Shard], tokenizer: Tokenizer, documents: int, characters: int) -> None:
    shown = 0
    for shard in shards:
        for document in shard.documents():
            if shown == documents:
                return
            # Four tokens a character are more than enough, and a document may have millions.
            text = tokenizer.decode(document[: 4 * characters].tolist())[:characters]
            print(f"document {shown}: {text!r}")
            shown += 1
