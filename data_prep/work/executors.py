"""Who does the work: this process, worker processes or a Ray cluster. Results come back in the order of the work.

Work has two levels. Units are independent: each is done by a lane, a process that reads, works and writes by itself.
Where there are fewer units than workers, each lane has helpers, processes that work on the chunks it reads.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data_prep.work.progress import Tick
from latentpt.data.errors import DataError

WORTH_A_PROCESS = 4 << 20  # bytes of input; less is done before a process has started
_AHEAD = 3  # chunks read ahead for every helper: enough to keep it busy, little enough to bound the memory
_GLANCE = 0.05  # seconds between looks at what lanes report

_KILLED = "a worker process was killed, most likely for want of memory; start the same command again with fewer --workers"

Report = Callable[[Tick], None]
Result = TypeVar("Result")


class Sized(Protocol):
    """An item of work."""

    @property
    def size(self) -> int:
        """Bytes of input."""
        ...


Item = TypeVar("Item", bound=Sized)
UnitFunction = Callable[[Item, int, Report], Result]
"""Does an item with so many helpers and reports what it has done."""


class StoppedError(Exception):
    """Another lane has failed, or Ctrl-C was pressed: this one need not go on."""


# Chunks of one unit.


def chunk_results(
    make: Callable[[], Callable[[Any], Result]], work: Iterable[Any], helpers: int
) -> Iterator[Result]:
    """`make()` of every chunk of `work`, in order: in this process for one helper, in `helpers` processes for more."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker: the workers are the parallelism
    if helpers > 1:
        yield from _by_helpers(make, work, helpers)
    else:
        yield from map(make(), work)


def _by_helpers(
    make: Callable[[], Callable[[Any], Result]], work: Iterable[Any], helpers: int
) -> Iterator[Result]:
    pool = _pool(helpers, _start_helper, make)
    waiting: deque[Future[Result]] = deque()
    try:
        for chunk in work:
            waiting.append(pool.submit(_help, chunk))
            if len(waiting) >= _AHEAD * helpers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(_KILLED) from None
    finally:
        with _deaf():
            pool.shutdown(cancel_futures=True)


# Units.


def unit_results(
    function: UnitFunction[Item, Result],
    items: Sequence[Item],
    workers: int,
    executor: str,
    report: Report,
) -> Iterator[Result]:
    """`function` of every item, in order; `report` gets what they do as they do it (on Ray, item by item)."""
    if executor == "ray":
        return _on_ray(function, items, report)
    size = sum(item.size for item in items)
    lanes = max(1, min(workers, len(items), size // WORTH_A_PROCESS))
    if lanes > 1:
        return _by_lanes(function, items, lanes, workers // lanes, report)
    return (function(item, _helpers(item, workers), report) for item in items)


def _helpers(item: Sized, most: int) -> int:
    return max(1, min(most, item.size // WORTH_A_PROCESS))


def _by_lanes(
    function: UnitFunction[Item, Result], items: Sequence[Item], lanes: int, helpers: int, report: Report
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    ticks, stop = context.SimpleQueue(), context.Event()
    pool = _pool(lanes, _start_lane, function, helpers, ticks, stop)
    try:
        futures = [pool.submit(_do, item) for item in items]
        for future in futures:
            while not future.done():
                wait([future], timeout=_GLANCE)
                while not ticks.empty():
                    report(ticks.get())
            yield future.result()
        while not ticks.empty():
            report(ticks.get())
    except BrokenProcessPool:
        raise DataError(_KILLED) from None
    finally:
        with _deaf():
            stop.set()
            # A lane must not wait for room in the queue while we wait for it.
            threading.Thread(target=_drain, args=(ticks,), daemon=True).start()
            pool.shutdown(cancel_futures=True)


def _drain(ticks: Any) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            ticks.get()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let a second Ctrl-C not keep the workers from being stopped in order, which the first has begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_ray(function: UnitFunction[Item, Result], items: Sequence[Item], report: Report) -> Iterator[Result]:
    """Every item as a task; Ray does the items of a lost node again on another, as often as it must."""
    try:
        import ray
    except ImportError:
        raise DataError(
            "--executor ray needs the package ray; pip install -c constraints.txt -e '.[ray]'"
        ) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)  # RAY_ADDRESS names a running cluster
    task = ray.remote(max_retries=-1)(_in_folder)
    shared = ray.put(function)  # once: tasks carry a reference to it
    folder = str(Path.cwd())
    references = [task.remote(folder, shared, item) for item in items]
    for reference in references:
        try:
            result, tick = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        report(tick)
        yield result


def _in_folder(folder: str, function: UnitFunction[Item, Result], item: Item) -> tuple[Result, Tick]:
    """Run in the folder of the command, so that relative paths mean the same."""
    os.chdir(folder)
    done = [Tick(0)]

    def report(tick: Tick) -> None:
        done[0] = done[0].plus(tick)

    return function(item, 1, report), done[0]


# Processes.

_function: Any
_lane: tuple[int, Any, Any]


def _pool(processes: int, start: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), start, arguments)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C and stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_helper(make: Callable[[], Any]) -> None:
    global _function
    _start()
    _function = make()


def _help(chunk: Any) -> Any:
    return _function(chunk)


def _start_lane(function: Any, helpers: int, ticks: Any, stop: Any) -> None:
    global _function, _lane
    _start()
    _function, _lane = function, (helpers, ticks, stop)


def _do(item: Any) -> Any:
    helpers, ticks, stop = _lane

    def report(tick: Tick) -> None:
        if stop.is_set():
            raise StoppedError
        ticks.put(tick)

    return _function(item, _helpers(item, helpers), report)
