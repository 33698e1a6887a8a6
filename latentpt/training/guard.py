"""What may end a training early: a signal, a STOP file, the end of its time, gradients that are no longer finite."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from latentpt.config import ConfigError

# In the order of precedence when ranks report different reasons in the same step.
REASONS = (
    None,
    "end of --minutes",
    "file STOP",
    "end of the launcher",
    "SIGUSR1",
    "SIGHUP",
    "SIGINT",
    "SIGTERM",
)


class StopSignals:
    """Lets all ranks agree, without waiting for one another, on the step after which to save and stop.

    A launcher signals its ranks one after another, up to half a minute apart, so a rank must not act on its own flag.
    Every step posts the flags to a reduction on the CPU and reads the outcome of the step before: all ranks read the
    same value at the same step, and the communication is over by the time it is read. Use as a context manager.
    """

    def __init__(self, stop_file: Path, deadline: float | None = None) -> None:
        """`deadline` is a time.monotonic() of this process."""
        self._stop_file, self._deadline = stop_file, deadline
        self._flag = 0
        self._alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._looks = not dist.is_initialized() or dist.get_rank() == 0  # one rank looks for the file
        self._group = None if self._alone else dist.new_group(backend="gloo")
        self._posted: tuple[torch.Tensor, Any] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._posted is not None:
            with contextlib.suppress(RuntimeError):  # another rank may be gone already
                self._posted[1].wait()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._flag = max(self._flag, REASONS.index(signal.Signals(number).name))
        if number == signal.SIGINT:  # whoever presses Ctrl-C again does not want to wait for the state
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def orphaned(self) -> None:
        """The launcher has ended: stop as if it had said so. May be called by any thread."""
        self._flag = max(self._flag, REASONS.index("end of the launcher"))

    def reason(self) -> str | None:
        """Call once after every step, on every rank: why to stop now, the same on all ranks, or None."""
        if self._looks and self._stop_file.exists():
            self._flag = max(self._flag, REASONS.index("file STOP"))
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._flag = max(self._flag, REASONS.index("end of --minutes"))
        if self._alone:
            return REASONS[self._flag]
        agreed = 0
        if self._posted is not None:
            flags, work = self._posted
            work.wait()
            agreed = int(flags.item())
        flags = torch.tensor([self._flag])
        self._posted = flags, dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return REASONS[agreed]


class TrainingDivergedError(ConfigError):
    """Gradients were not finite for too many steps in a row: the configuration does not train."""

    exit_code = 1  # the input was fine


class SkippedSteps:
    """Counts steps that were skipped because a gradient was not finite; every rank sees the same ones.

    Attributes:
        total: skipped steps since the beginning of the training.
        in_a_row: skipped steps since the last applied one.
    """

    def __init__(self, limit: int, total: int = 0, in_a_row: int = 0) -> None:
        self.limit, self.total, self.in_a_row = limit, total, in_a_row

    def count(self, step: int, applied: bool) -> None:
        """Take note of step `step` (the first is 1); raises TrainingDivergedError after `limit` skips in a row."""
        if applied:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise TrainingDivergedError(
                f"the gradients of the last {self.in_a_row} steps were not finite; the last finite step was "
                f"{step - self.in_a_row}: resume from a checkpoint before it with a lower optimizer.lr"
            )


class LossWatch:
    """Tells a loss that is far above those before it: a spike, or the beginning of a divergence.

    "Far" is five standard deviations of the running mean, and a tenth of the mean at least; what is not finite is. A spike
    does not enter the mean.

    Attributes:
        mean: running mean of the losses so far.
        high: whether the latest loss was far above it.
    """

    DECAY, BEGIN = 0.98, 20

    def __init__(self, state: Mapping[str, float] | None = None) -> None:
        """Go on from the `state` of an earlier watch, or from nothing."""
        state = state or {}
        self.mean, self.high = state.get("mean", 0.0), bool(state.get("high", False))
        self._variance, self._seen = state.get("variance", 0.0), int(state.get("seen", 0))

    @property
    def state(self) -> dict[str, float]:
        """All that it knows."""
        return {"mean": self.mean, "high": float(self.high), "variance": self._variance, "seen": self._seen}

    def observe(self, loss: float) -> bool:
        """Take note of one step's loss; returns whether a spike begins with it."""
        was_high = self.high
        far = max(5 * self._variance**0.5, 0.1 * abs(self.mean))
        self.high = not math.isfinite(loss) or (self._seen >= self.BEGIN and loss > self.mean + far)
        if not self.high:
            self._seen += 1
            new = max(1 - self.DECAY, 1 / self._seen)
            away = loss - self.mean
            self.mean += new * away
            self._variance = (1 - new) * (self._variance + new * away**2)
        return self.high and not was_high
