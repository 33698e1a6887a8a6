"""bench: how fast and in how much memory, each figure beside what it is to be compared with, in one run.

--input, --tokenizer    tokenize beside the tokenizers library's encode_batch over the same documents
--synthetic 10G         peak memory of tokenize on generated text, a tenth of it one document
--shards                the loader's tokens/s from the page cache, and its start far into the stream
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.commands.arguments import amount
from data_prep.reading.inputs import find_inputs, plan_units
from data_prep.reading.records import PieceReader, ReadOptions
from data_prep.tokens.encoding import EncodeOptions
from data_prep.tokens.job import Job
from latentpt.data.errors import DataError
from latentpt.data.manifest import read_manifest
from latentpt.data.tokenizer import load_tokenizer

_BATCH = 64  # documents a call of encode_batch gets
_VOCABULARY = 50_000  # synthetic words
_POOL_WORDS = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--input", nargs="+", help="documents to tokenize")
    parser.add_argument("--tokenizer", help="tokenizer.json to tokenize with")
    parser.add_argument(
        "--workers", type=amount, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--rounds", type=amount, default=2, help="times both are measured, in turn; the best counts"
    )
    parser.add_argument(
        "--synthetic", type=amount, help="bytes of text to generate and tokenize for the memory figure"
    )
    parser.add_argument("--shards", nargs="+", help="shard folders for the loader's figures")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.shards:
        measure_loader(arguments.shards)
    if arguments.synthetic or arguments.input:
        if not arguments.tokenizer:
            raise DataError("bench needs a --tokenizer to tokenize with")
        if arguments.input:
            measure_throughput(
                find_inputs(arguments.input), arguments.tokenizer, arguments.workers, arguments.rounds
            )
        if arguments.synthetic:
            measure_memory(arguments.synthetic, arguments.tokenizer, arguments.workers)
    elif not arguments.shards:
        raise DataError("bench needs --input, --synthetic or --shards")


def measure_throughput(files: list[str], tokenizer: str, workers: int, rounds: int) -> None:
    """Print the rates of reading, of the library by itself and of tokenize, and the ratio of the last two."""
    text_bytes = sum(document.text_bytes for document in read_documents(files, ReadOptions()))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as spool:
        records = sum(
            1
            for unit in plan_units(files, 1 << 40)
            for piece in unit.pieces
            for _ in PieceReader(piece, ReadOptions(), Path(spool))
        )
    reading = time.perf_counter() - started
    print(
        f"{records:,} documents, {text_bytes / 1e6:.1f} MB of text, {workers} workers, {os.cpu_count()} cores"
    )
    print(f"reading        {text_bytes / reading / 1e6:8.2f} MB/s in one process")
    alone, ours = [], []
    for _ in range(rounds):
        alone.append(_in_fresh_process(_encode_batch_seconds, files, tokenizer, workers))
        ours.append(_in_fresh_process(_tokenize_seconds, files, tokenizer, workers))
        print(f"  encode_batch {alone[-1]:.1f} s, tokenize {ours[-1]:.1f} s")
    print(
        f"encode_batch   {text_bytes / min(alone) / 1e6:8.2f} MB/s with {workers} threads, documents in memory"
    )
    print(f"tokenize       {text_bytes / min(ours) / 1e6:8.2f} MB/s with {workers} workers, start to shards")
    print(f"ratio          {min(alone) / min(ours):8.2f}")


def _in_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    """Run in a process of its own, so that neither thread pools nor memory carry over."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _encode_batch_seconds(files: list[str], tokenizer: str, threads: int) -> float:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(tokenizer)
    texts = [document.text for document in read_documents(files, ReadOptions())]
    started = time.perf_counter()
    for first in range(0, len(texts), _BATCH):
        loaded.encode_batch(texts[first : first + _BATCH], add_special_tokens=False)
    return time.perf_counter() - started


def _tokenize_seconds(files: list[str], tokenizer: str, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        _tokenize(files, tokenizer, str(Path(folder) / "out"), workers)
        return time.perf_counter() - started


def _tokenize(files: list[str], tokenizer: str, output: str, workers: int) -> None:
    from data_prep.commands.tokenize import tokenize

    tokenize(
        Job(
            output=output,
            name="bench",
            units=tuple(plan_units(files, 256_000_000)),
            encode=EncodeOptions(tokenizer),
            tokenizer_sha256=load_tokenizer(tokenizer).sha256,
            shard_tokens=500_000_000,
            unit_size=256_000_000,
            max_bad=0.0,
        ),
        workers,
    )


def measure_memory(size: int, tokenizer: str, workers: int) -> None:
    """Tokenize `size` bytes of generated text and print the peak memory of the parent and of its largest child."""
    with tempfile.TemporaryDirectory() as folder:  # TMPDIR says where there is room
        path = Path(folder) / "synthetic.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for text in synthetic_documents(size):
                file.write('{"text": "')
                file.writelines(text)
                file.write('"}\n')
        print(f"{path.stat().st_size / 1e9:.2f} GB of generated text, one document of {size / 1e10:.2f} GB")
        started = time.perf_counter()
        _tokenize([str(path)], tokenizer, str(Path(folder) / "out"), workers)
        seconds = time.perf_counter() - started
        counts = read_manifest(Path(folder) / "out").counts
    own, child = (
        resource.getrusage(who).ru_maxrss / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{json.dumps(counts.model_dump())} in {seconds:.0f} s, {size / seconds / 1e6:.1f} MB/s")
    print(f"peak memory    {own:.3f} GB in the parent, {child:.3f} GB in the largest of {workers} workers")


def synthetic_documents(size: int) -> Iterator[Iterator[str]]:
    """Documents as pieces of text, `size` bytes in all; the middle one has a tenth of them.

    Each is cut at random from a few megabytes of random words, common ones far more often than rare ones.
    """
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(rng.choice(letters, size=n)) for n in rng.integers(2, 10, size=_VOCABULARY)]
    ranks = (rng.pareto(0.7, size=_POOL_WORDS) * 20 % _VOCABULARY).astype(int)
    pool = " ".join([words[rank] for rank in ranks])

    def pieces(length: int) -> Iterator[str]:
        while length > 0:
            start = int(rng.integers(len(pool) // 2))
            text = pool[start : start + min(length, len(pool) // 2)]
            yield text
            length -= len(text)

    half = size * 45 // 100
    for part in (half, 0, half):
        if part == 0:
            yield pieces(size // 10)
        while part > 0:
            length = min(part, int(rng.integers(500, 20_000)))
            yield pieces(length)
            part -= length


def measure_loader(paths: list[str]) -> None:
    """Print tokens/s of shuffled samples and of a stream of batches, and the time to the first one at several starts."""
    from latentpt.data.batches import BatchStream, TokenDataset

    data = TokenDataset(paths, 2048)
    print(f"{data.num_tokens:,} tokens, {data.num_samples:,} samples of 2,048")
    data.read(np.arange(data.num_samples), seed=0)  # into the page cache
    for rows in (8, 1024):
        started = time.perf_counter()
        for first in range(0, 20_480, rows):
            data.read(np.arange(first, first + rows), seed=1)
        seconds = time.perf_counter() - started
        print(f"read           {20_480 * 2048 / seconds / 1e6:8.1f} M tokens/s, {rows} samples at a time")
    with BatchStream(data, 2, 8, 8) as stream:
        started = time.perf_counter()
        for _ in range(2560):
            next(stream)
        seconds = time.perf_counter() - started
    print(f"BatchStream    {20_480 * 2048 / seconds / 1e6:8.1f} M tokens/s, batches of 8")
    for start in (0, 10**6, 10**9, 10**12):
        started = time.perf_counter()
        with BatchStream(TokenDataset(paths, 2048), 2, 8, 8, start_sample=start) as stream:
            next(stream)
            print(
                f"first batch at sample {start:.0e}: {(time.perf_counter() - started) * 1e3:.1f} ms, opening included"
            )
