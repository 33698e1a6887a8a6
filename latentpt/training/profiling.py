"""A trace of some steps, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from latentpt.files import write_text


class Profile:
    """Traces the first to the last of `steps` of one rank into `folder`; call `before` every step. Use as a context manager.

    folder/steps-A-to-B-rank-00000.json.gz is the trace, .txt a table of the operations that took longest.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._first, self._last = steps or (0, -1)
        self._running: profile | None = None
        self._from = 0

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self.before(self._last + 1)

    def before(self, step: int) -> None:
        """The coming step is `step`."""
        if self._running is None and self._first <= step <= self._last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._running, self._from = profile(activities=activities, record_shapes=True), step
            self._running.start()
        elif self._running is not None and step > self._last:
            running, self._running = self._running, None
            running.stop()
            try:
                self._write(running)
            except OSError as error:
                print(f"warning: no trace in {self._folder} ({error})", file=sys.stderr, flush=True)

    def _write(self, traced: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self._from}-to-{self._last}-rank-{self._rank:05d}"
        traced.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_text(self._folder / f"{name}.txt", traced.key_averages().table(sort_by=by, row_limit=40))
