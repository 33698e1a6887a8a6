"""Work in a process of its own, and what it took: CPU seconds are comparable while others use the machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Took(NamedTuple):
    """What a piece of work took, its child processes included."""

    seconds: float
    """By the clock."""
    cpu: float
    """Seconds of all cores together."""
    own_memory: int
    """Peak bytes of the process itself."""
    child_memory: int
    """Peak bytes of the largest child process."""


def measured(function: Callable[..., object], *arguments: Any) -> Took:
    """Run `function` in a fresh process, so that neither thread pools, caches nor memory carry over."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_timed, function, arguments).result()


def _timed(function: Callable[..., object], arguments: tuple[Any, ...]) -> Took:
    before, started = _cpu(), time.perf_counter()
    with (
        Path(os.devnull).open("w") as silent,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        function(*arguments)
    seconds, cpu = time.perf_counter() - started, _cpu() - before
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Took(seconds, cpu, _peak(), child)


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak() -> int:
    """Peak bytes of this process; what getrusage says of it is at least what the process that started it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
