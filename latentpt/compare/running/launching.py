"""One training as a process of its own: started, told to stop, and never left behind unseen.

A signal that ends `compare.py run` (Ctrl-C included) reaches the training as SIGTERM, after which it saves and ends. If
the comparison itself is killed, Linux sends the training SIGTERM all the same, and until it has ended it holds the
comparison's lock, so that nothing starts beside it in the same folder.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from latentpt import files
from latentpt.config import ConfigError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """A training stopped before its end without an error; running the comparison again continues it."""


class Failed(ConfigError):
    """A training ended with an error, which stands in its output above."""


def launch(script: Path, config: Path, processes: int | None, lock: int) -> None:
    """Run one training to its end or until a signal stops it; it inherits `lock`, see `exclusive`.

    Raises:
        Interrupted: a signal that ends the comparison arrived; the training has saved and ended.
        Failed: it ended with an error.
    """
    count = processes or devices()
    command = [sys.executable, *launcher(count), str(script), "--config", str(config)]
    # Threads that wait by spinning slow a training tenfold as soon as anything else wants a core.
    threads = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(max(1, cores() // count))}
    with Stopping() as stopping:
        process = subprocess.Popen(
            command,
            env={**threads, **os.environ},
            pass_fds=(lock,),
            start_new_session=True,  # a terminal's Ctrl-C comes to us alone
            preexec_fn=ends_with_its_parent(),
        )
        stopping.tell(process)
        code = process.wait()
    if stopping.received is not None:
        raise Interrupted(f"stopped by {stopping.received.name}; the same command continues")
    if code not in (0, *(-number for number in STOPPING)):
        raise Failed(f"training {config.stem} ended with exit code {code}; its messages stand above")


def launcher(count: int) -> list[str]:
    """What stands before the script for `count` processes; one needs nothing.

    It is the part of DeepSpeed's launcher that starts the ranks of one machine: the part in front of it, which reads host
    files, does not pass SIGTERM on.
    """
    if count == 1:
        return []
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(count))}).encode()).decode()
    options = [f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return ["-m", "deepspeed.launcher.launch", *options]


def devices() -> int:
    """GPUs of this machine, or one process where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


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
    """While it is entered, signals that would end this process are passed to a training as SIGTERM."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The signal that arrived."""
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tell(self, process: subprocess.Popen[bytes]) -> None:
        """Pass signals to this process, one that came before it included."""
        self._process = process
        if self.received is not None:
            process.send_signal(signal.SIGTERM)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def ends_with_its_parent() -> Callable[[], object] | None:
    """What a child runs first so that it gets SIGTERM when this process is killed; None where only Linux can do it."""
    if sys.platform != "linux":
        return None
    library, on_parents_death = ctypes.CDLL(None), 1  # PR_SET_PDEATHSIG
    return lambda: library.prctl(on_parents_death, signal.SIGTERM)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold the folder of a comparison, so that no arm is trained twice at once; yields the lock's file descriptor.

    The lock is free when this process and every training that inherited it have ended.

    Raises:
        ConfigError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(files.exclusive(folder))
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: this comparison is being run by another process, or the training of one that was killed "
                "still saves its state"
            ) from None
        yield lock
