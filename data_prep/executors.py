"""Who encodes: this process, or worker processes; chunks come back in the order in which they were read."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from data_prep.encoding import Chunk, Encoded, EncodeOptions, Encoder
from latentpt.data.errors import DataError

_AHEAD = 3  # chunks read ahead for every worker: enough to keep it busy, little enough to bound the memory

Work = tuple[Chunk, dict[str, int]]
"""A chunk and the records of its unit that are already in finished shards."""

_encoder: Encoder


def encode(work: Iterable[Work], options: EncodeOptions, workers: int) -> Iterator[Encoded]:
    """Encode chunks in order: in this process for one worker, in `workers` processes for more."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker: the workers are the parallelism
    if workers > 1:
        yield from _in_processes(work, options, workers)
        return
    encoder = Encoder(options)
    for chunk, done in work:
        yield encoder.encode(chunk, done)


def _in_processes(work: Iterable[Work], options: EncodeOptions, workers: int) -> Iterator[Encoded]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(options,))
    waiting: deque[Future[Encoded]] = deque()
    try:
        for chunk, done in work:
            waiting.append(pool.submit(_encode, chunk, done))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, most likely for want of memory; start the same command again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(options: EncodeOptions) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C and stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(options)


def _end_with_parent() -> None:
    """Leave when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(chunk: Chunk, done: dict[str, int]) -> Encoded:
    return _encoder.encode(chunk, done)
