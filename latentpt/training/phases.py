"""Where the time of steps goes, told without making the host wait for the device."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Phases:
    """Adds up the seconds of what was going on, by names; the training says what has just ended.

    On a GPU the moments are events in the order of its work: they cost the host microseconds and are read when it has
    waited for the device anyway. Elsewhere they are the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._last: torch.cuda.Event | float | None = None
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    def start(self) -> None:
        """What was going on until now is nobody's."""
        self._last = self._now()

    def spent(self, name: str) -> None:
        """The time since the last word belongs to `name`."""
        before, self._last = self._last, self._now()
        if isinstance(before, torch.cuda.Event) and isinstance(self._last, torch.cuda.Event):
            self._spans.append((name, before, self._last))
        elif isinstance(before, float) and isinstance(self._last, float):
            self._seconds[name] += self._last - before

    def read(self) -> dict[str, float]:
        """Seconds by name since this was last asked; the host has waited for the last step."""
        for name, begin, end in self._spans:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        found = dict(self._seconds)
        self._spans.clear()
        self._seconds.clear()
        return found

    def _now(self) -> torch.cuda.Event | float:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
