"""Who does the work: this process, worker processes or a Ray cluster. Results come back in the order of the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from data_prep.tokens.encoding import Chunk, Encoded, EncodeOptions, Encoder
from latentpt.data.errors import DataError

_AHEAD = 3  # chunks read ahead for every worker: enough to keep it busy, little enough to bound the memory

_KILLED = "a worker process was killed, most likely for want of memory; start the same command again with fewer --workers"

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
        raise DataError(_KILLED) from None
    finally:
        pool.shutdown(cancel_futures=True)


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_units(
    function: Callable[[Item], Result], units: Sequence[Item], executor: str, workers: int
) -> list[Result]:
    """`function` of every unit, in order: here for one worker, in processes for more, or as tasks on Ray."""
    return list(results_of_units(function, units, executor, workers))


def results_of_units(
    function: Callable[[Item], Result], units: Sequence[Item], executor: str, workers: int
) -> Iterator[Result]:
    """As `map_units`, one result after another."""
    if executor == "ray":
        return _on_ray(function, units)
    if workers == 1 or len(units) == 1:
        return map(function, units)
    return _mapped(function, units, workers)


def _mapped(function: Callable[[Item], Result], units: Sequence[Item], workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(units)), context, initializer=_start)
    try:
        yield from pool.map(function, units)
    except BrokenProcessPool:
        raise DataError(_KILLED) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(function: Callable[[Item], Result], units: Sequence[Item]) -> Iterator[Result]:
    """Every unit as a task; Ray does the units of a lost node again on another, as often as it must."""
    try:
        import ray
    except ImportError:
        raise DataError("--executor ray needs the package ray; install latentpt[ray]") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)  # RAY_ADDRESS names a running cluster
    task = ray.remote(max_retries=-1)(_in_folder)
    folder = str(Path.cwd())
    references = [task.remote(folder, function, unit) for unit in units]
    for reference in references:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _in_folder(folder: str, function: Callable[[Item], Result], unit: Item) -> Result:
    """Run in the folder of the command, so that relative paths mean the same."""
    os.chdir(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return function(unit)


def _start(options: EncodeOptions | None = None) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C and stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if options is not None:
        _encoder = Encoder(options)


def _end_with_parent() -> None:
    """Leave when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(chunk: Chunk, done: dict[str, int]) -> Encoded:
    return _encoder.encode(chunk, done)
