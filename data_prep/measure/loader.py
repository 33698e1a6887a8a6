"""How fast the loader reads, and how much of the disk it reads for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np


def measure_loader(paths: list[str]) -> None:
    """Print tokens/s of shuffled samples and of a stream of batches, and the time to the first one at several starts."""
    from latentpt.data.batches import BatchStream, TokenDataset

    data = TokenDataset(paths, 2048)
    print(f"{data.num_tokens:,} tokens, {data.num_samples:,} samples of 2,048, {len(data.shards)} shards")
    _measure_cold(paths)
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


def _measure_cold(paths: list[str]) -> None:
    """Print how much of the disk is read for samples that are not in memory, as the loader maps it and as mapped plainly."""
    from latentpt.data.batches import TokenDataset, open_folder

    for name, random in (("for samples", True), ("plainly", False)):
        data = TokenDataset(paths, 2048)
        if not random:
            data.shards = [shard for path in paths for shard in open_folder(Path(path))[1]]
        for shard in data.shards:
            with shard.bin_path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        count, before = min(100, data.num_samples), _read_bytes()
        data.read(np.arange(count), seed=3)
        wanted, got = count * 2049 * data.shards[0].dtype.itemsize, _read_bytes() - before
        print(
            f"cold, mapped {name}: {got / 1e6:.1f} MB read from the disk for {wanted / 1e6:.1f} MB of samples"
        )


def _read_bytes() -> int:
    """Bytes that this process has had read from storage."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])
