"""One training as a process of its own: started, told to stop, and never left behind unseen.

A signal that ends `compare.py run` (Ctrl-C included) reaches the trainings as SIGTERM, after which they save and end. If
the comparison itself is killed, Linux sends them SIGTERM all the same, and until a training has ended it holds the lock
of its run, so that nothing starts beside it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from latentpt import files
from latentpt.config import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """A training stopped before its end without an error; running the comparison again continues it."""


class Busy(ConfigError):
    """Another process is at it."""


class Failed(ConfigError):
    """A training ended with an error, which stands in its output above."""


def launch(
    script: Path,
    config: Path,
    processes: int | None,
    lock: int,
    stopping: Stopping,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    share: int = 1,
    place: int = 0,
) -> None:
    """Run one training to its end or until `stopping`; it inherits `lock`, see `exclusive`.

    Its output goes to `log` (None: to the terminal). It is one of `share` side by side, whose cores and GPUs are divided:
    `place` says which.

    Raises:
        Interrupted: the comparison was told to stop; the training has saved and ended.
        Failed: it ended with an error.
    """
    count = processes or devices()
    gpus = gpus_of(place, count)
    hidden = os.environ.get(VISIBLE) == ""  # a GPU is there, and is not to be used
    shown = {} if hidden else {VISIBLE: ",".join(gpus)}
    command = [*ended_with_its_parent(), *launcher(gpus), str(script), "--config", str(config)]
    # Threads that wait by spinning slow a training tenfold as soon as anything else wants a core.
    threads = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(max(1, cores() // (count * share)))}
    with contextlib.ExitStack() as stack:
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(log.open("ab"))
        process = subprocess.Popen(
            command,
            env={**threads, **os.environ, **shown, **(environment or {})},
            pass_fds=(lock,),
            start_new_session=True,  # a terminal's Ctrl-C comes to us alone
            stdout=output,
            stderr=output,
        )
        stack.enter_context(stopping.telling(process))
        code = process.wait()
    if stopping.reason is not None:
        raise Interrupted(f"{stopping.reason}; the same command continues")
    if code not in (0, *(-number for number in STOPPING)):
        messages = "above" if log is None else f"in {log}"
        raise Failed(f"training {config.stem} ended with exit code {code}; its messages stand {messages}")


def launcher(gpus: list[str]) -> list[str]:
    """What stands before the script for a process on each of the GPUs; one needs nothing.

    It is the part of DeepSpeed's launcher that starts the ranks of one machine: the part in front of it, which reads host
    files, does not pass SIGTERM on.
    """
    if len(gpus) == 1:
        return []
    world = base64.urlsafe_b64encode(json.dumps({"localhost": gpus}).encode()).decode()
    options = [f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return ["-m", "deepspeed.launcher.launch", *options]


def devices() -> int:
    """GPUs of this machine, or one process where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def gpus_of(place: int, count: int) -> list[str]:
    """Names of the GPUs of a training's `count` processes, `place` counted on from those before, out of the ones that this
    process may use; without a GPU the names mean nothing."""
    mine = os.environ.get(VISIBLE) or ",".join(map(str, range(max(devices(), count))))
    names = mine.split(",")
    return [names[(place * count + number) % len(names)] for number in range(count)]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    """A port for the processes' rendezvous, so that two comparisons can share a machine."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Stopping:
    """While it is entered, signals that would end this process, and the end of its time, reach trainings as SIGTERM.

    A second signal does what it would have done without.
    """

    def __init__(self, minutes: float | None = None) -> None:
        """`minutes` until it is time to stop; None: never."""
        self.reason: str | None = None
        """Why it stops, in words; None as long as nobody asked for it."""
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._before: dict[signal.Signals, Any] = {}
        self._timer = None if minutes is None else threading.Timer(60 * minutes, self.stop, ["time is up"])

    def __enter__(self) -> Stopping:
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._on_signal)
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self._timer is not None:
            self._timer.cancel()

    @contextlib.contextmanager
    def telling(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Pass what asks to stop on to a process, even if it came before, while the block runs."""
        self._processes.add(process)
        if self.reason is not None:
            process.send_signal(signal.SIGTERM)
        try:
            yield
        finally:
            self._processes.discard(process)

    def stop(self, reason: str) -> None:
        """Have all trainings save and end, and no other begin."""
        self.reason = reason
        for process in list(self._processes):
            process.send_signal(signal.SIGTERM)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._restore()
        self.stop(f"stopped by {signal.Signals(number).name}")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def ended_with_its_parent() -> list[str]:
    """How Python is started so that it gets SIGTERM when this process is killed, which only Linux can do.

    The child asks for it itself and then becomes what it is for: a function run between fork and exec is not safe beside
    other threads.
    """
    if sys.platform != "linux":
        return [sys.executable]
    on_parents_death = 1  # PR_SET_PDEATHSIG
    ask = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl({on_parents_death}, {int(signal.SIGTERM)}); "
        f"os.getppid() == {os.getpid()} and os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-c", ask]


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold a folder, so that nothing in it is trained twice at once; yields the lock's file descriptor.

    The lock is free when this process and every training that inherited it have ended.

    Raises:
        Busy: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(files.exclusive(folder))
        except BlockingIOError:
            raise Busy(
                f"{folder}: is being trained by another process, or the training of one that was killed still saves its state"
            ) from None
        yield lock
