"""Threads of every rank that end it when it would otherwise wait for ever, or train for nobody.

    the launcher has ended (killed, or told to stop and telling nobody)   save after the current step and stop
    a rank is silent: suspended, swapped out, its machine gone             named, and all ranks end
    no rank gets on: one hangs, the others wait for it                     the one that is furthest behind is named, all end

Every rank leaves a sign of life in the store over which the ranks found one another; rank 0 reads them. The store lives in
rank 0, so a rank that gets no answer from it knows who is silent; torchrun's lives in torchrun and ends with it. Nothing here
communicates as the training does, whose collectives are what a silent rank blocks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch.distributed as dist

LAUNCHERS = {
    "deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch",
    "torchrun", "torch.distributed.run", "torch.distributed.launch",
}  # fmt: skip
"""Commands and modules."""
BEAT = 1.0
"""Seconds between signs of life."""
LEAVE = 10.0
"""Seconds that an exchange under way at the end may take; longer takes only one whose answer never comes."""
EXIT_CODE = 1


class Watchdog:
    """Watches from `__enter__` to `__exit__`; all ranks have one.

    silence: seconds without a sign of life after which a rank counts as gone.
    patience: seconds without a `mark` of any rank after which the training counts as hung.
    on_orphaned: called in the thread when the launcher has ended; a rank that then does not stop within `patience` is ended.
    on_end: called in a thread, with the reason, before the rank is ended.
    """

    def __init__(
        self,
        silence: float,
        patience: float,
        on_orphaned: Callable[[], None],
        on_end: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self.silence, self.patience = silence, patience
        self._on_orphaned, self._on_end = on_orphaned, on_end
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._marks = 0
        self._where = "start"
        self._stop = threading.Event()
        self._launchers = launchers()
        self._orphaned_at: float | None = None
        self._answered = time.monotonic()
        self._launcher_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._signs = SignsOfLife(self._world, silence, patience)

    def __enter__(self) -> Watchdog:
        targets = [self._watch]
        if self._world > 1:
            shared = dist.distributed_c10d._get_default_store()
            own = shared.clone()  # type: ignore[attr-defined]  # torch's stubs do not know Store.clone, a connection of our own
            self._store = dist.PrefixStore("watchdog", own)
            targets.append(self._keep_exchanging)
        self._threads = [threading.Thread(target=target, name="watchdog", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that comes back from the store while the interpreter ends aborts the process.
        self._stop.set()
        until = time.monotonic() + LEAVE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def mark(self, where: str) -> None:
        """The training has come to `where`, which all ranks come to in the same order."""
        self._marks += 1
        self._where = where

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(BEAT):
            self._look_for_launcher()
            looked, before = time.monotonic(), looked
            if looked - before > self.silence / 2:  # this rank was away itself: the whole job was suspended
                self._answered = looked
            quiet = looked - self._answered
            # the other thread waits for an answer without end
            if self._world > 1 and quiet > self.silence and not self._store_is_gone:
                self._end(
                    f"rank 0 has not answered for {quiet:.0f} seconds: it is suspended or its machine is gone"
                )

    @property
    def _store_is_gone(self) -> bool:
        """Whether the store has ended with the launcher: then no answer says nothing of rank 0."""
        return self._launcher_has_store and self._orphaned_at is not None

    def _look_for_launcher(self) -> None:
        now = time.monotonic()
        if self._orphaned_at is None and not all(map(_lives, self._launchers)):
            self._orphaned_at = now
            self._on_orphaned()
        if self._orphaned_at is not None and now - self._orphaned_at > self.patience:
            self._end("the launcher has ended, and this rank did not stop in time")

    def _keep_exchanging(self) -> None:
        try:
            while not self._stop.wait(BEAT):
                self._exchange()
                self._answered = time.monotonic()
        except dist.DistError as error:
            # rank 0 may have come to its end before this one; whether the launcher has the other thread sees meanwhile
            if not self._stop.wait(5 * BEAT) and not self._store_is_gone:
                self._end(f"rank 0 does not answer: it has ended ({str(error).splitlines()[0]})")

    def _exchange(self) -> None:
        """Leave a sign of life and, in rank 0, read those of the others."""
        self._store.set(str(self._rank), f"{time.monotonic_ns()} {self._marks} {self._where}")
        if self._store.check(["end"]):
            self._end(self._store.get("end").decode())
        if self._rank == 0:
            here = [rank for rank in range(self._world) if self._store.check([str(rank)])]
            found = dict(zip(here, self._store.multi_get([str(rank) for rank in here]), strict=True))
            problem = self._signs.judge(
                {rank: sign.decode() for rank, sign in found.items()}, time.monotonic()
            )
            if problem:
                self._store.set("end", problem)
                self._stop.wait(2 * BEAT)  # so that the others read why
                self._end(problem)

    def _end(self, problem: str) -> None:
        with contextlib.suppress(OSError):
            print(f"error: {problem}; rank {self._rank} ends at {self._where}", file=sys.stderr, flush=True)
            self._on_end(problem)
        os._exit(EXIT_CODE)  # the main thread waits for somebody who will not come


class SignsOfLife:
    """Judges the signs of all ranks, each "beat marks where"; plain data, no clock of its own."""

    def __init__(self, world: int, silence: float, patience: float) -> None:
        self._world, self._silence, self._patience = world, silence, patience
        self._beats: dict[int, tuple[str, float]] = {}
        self._marks: dict[int, tuple[int, float]] = {}
        self._looked: float | None = None

    def judge(self, signs: dict[int, str], now: float) -> str:
        """What is wrong at the time `now`, in seconds; empty if nothing is."""
        if self._looked is not None and now - self._looked > self._silence / 2:
            self._beats.clear()  # whoever judges was away: the whole job was suspended, and nobody is to blame
            self._marks.clear()
        self._looked = now
        where = {}
        for rank in range(self._world):
            beat, marks, where[rank] = signs.get(rank, "- 0 start").split(" ", 2)
            if self._beats.get(rank, ("", 0.0))[0] != beat:
                self._beats[rank] = beat, now
            if self._marks.get(rank, (-1, 0.0))[0] != int(marks):
                self._marks[rank] = int(marks), now
        for rank, (_, since) in self._beats.items():
            if now - since > self._silence:
                return f"rank {rank} has been silent for {now - since:.0f} seconds, last at {where[rank]}: it is suspended or its machine is gone"
        if all(now - since > self._patience for _, since in self._marks.values()):
            behind = min(self._marks, key=lambda rank: self._marks[rank][0])
            return f"no rank has got on for {self._patience:.0f} seconds; furthest behind is rank {behind}, at {where[behind]}"
        return ""


def launchers() -> list[psutil.Process]:
    """The processes above this one that started it as a rank."""
    found = []
    for parent in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(word).name in LAUNCHERS for word in parent.cmdline()[:4]):
                found.append(parent)
    return found


def _lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that nobody has buried has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
