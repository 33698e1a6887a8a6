"""What a training tells: metrics.jsonl first, then sinks (TensorBoard, ..) and the console from the same values."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latentpt.run import cut_metrics
from latentpt.run.exits import to_nowhere
from latentpt.training.sinks import Sink

# Dense bf16 peaks in TFLOP/s from the vendors' data sheets, by a part of the device's name.
PEAK_TFLOPS = {
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "GH200": 989.4,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
    "MI250X": 383.0,
}


def peak_flops(device: torch.device, precision: str, peak_tflops: float | None) -> float | None:
    """Peak FLOP/s of one device: as configured, else for bf16 looked up by its name, else None."""
    if peak_tflops is not None:
        return peak_tflops * 1e12
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


POSITION = ("kind", "step", "tokens", "training_flops", "seconds")
"""What every record has."""


class Clock:
    """Wall time of training, continued over resumes and stopped during evaluation and checkpoints."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since = time.perf_counter()
        self._running = True

    @property
    def seconds(self) -> float:
        """Seconds trained so far."""
        return self._before + (time.perf_counter() - self._since if self._running else 0.0)

    def __enter__(self) -> Clock:
        """Stop while the block runs."""
        self._before, self._running = self.seconds, False
        return self

    def __exit__(self, *_: object) -> None:
        self._since, self._running = time.perf_counter(), True


CONSOLE = "the console"
UNSAID = ("layers",)
"""Kinds of records that are too long for the console."""


class Monitor:
    """Writes what one rank measures. Use as a context manager.

    On a terminal a progress bar shows the latest values and the time left; elsewhere each record is a plain line.
    """

    def __init__(self, metrics: Path, sinks: Sequence[Sink], done: int, total: int) -> None:
        self._path, self._sinks, self._failed = metrics, sinks, set[str]()
        self._file = _opened(metrics)
        self._total = total
        self._started, self._first = time.perf_counter(), done
        self._bar = (
            tqdm(total=total, initial=done, unit="step", dynamic_ncols=True) if sys.stdout.isatty() else None
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        for sink in self._sinks:
            with self._writing(sink.name):
                sink.close()
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        with self._writing(CONSOLE):
            if self._bar is not None:
                self._bar.write(text)
            else:
                print(text, flush=True)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            with self._writing(CONSOLE):
                self._bar.update()

    @contextlib.contextmanager
    def _writing(self, where: str) -> Iterator[None]:
        """Writing that may fail without ending the training: a full disk, a closed pipe, a server. The first failure is told."""
        try:
            yield
        except Exception as error:  # closed files are ValueErrors, and services have errors of their own
            if where not in self._failed:
                self._failed.add(where)
                if where == CONSOLE:  # whatever is still to come would fail again
                    to_nowhere(sys.stdout)
                with contextlib.suppress(OSError, ValueError):
                    print(
                        f"warning: {where} cannot be written ({error}); the training goes on",
                        file=sys.stderr,
                        flush=True,
                    )

    def record(self, values: dict[str, Any]) -> None:
        """Write one line of measurements; `values` holds kind, step and the rest. JSON knows no nan: it gets null."""
        line = json.dumps(values | {key: None for key, value in values.items() if _odd(value)}) + "\n"
        with self._writing(str(self._path)):
            self._write(line)
        for sink in self._sinks:
            with self._writing(sink.name):
                sink.record(values)
        if self._bar is not None and values["kind"] == "train":
            with self._writing(CONSOLE):
                self._bar.set_postfix_str(_summary(values))
        elif values["kind"] not in UNSAID:
            self.say(self._line(values))

    def rewind(self, step: int) -> None:
        """Take back everything after `step`: the training goes on from there."""
        os.close(self._file)
        with self._writing(str(self._path)):
            cut_metrics(self._path, step)
        self._file = _opened(self._path)
        for sink in self._sinks:
            with self._writing(sink.name):
                sink.rewind(step)
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def _write(self, line: str) -> None:
        """Append a line whole, or, where the disk is full, nothing of it."""
        position = os.lseek(self._file, 0, os.SEEK_END)
        content = line.encode("utf-8")
        written = os.write(self._file, content)
        if written < len(content):
            os.ftruncate(self._file, position)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _line(self, values: dict[str, Any]) -> str:
        if values["kind"] == "text":
            return f"step {values['step']:>7}  writes {values['prompt']!r} > {values['text']!r}"
        if "loss" not in values:
            rest = ", ".join(f"{key} {value}" for key, value in values.items() if key not in POSITION)
            return f"step {values['step']:>7}  {values['kind']} {rest}"
        if values["kind"] != "train":
            return f"step {values['step']:>7}  {values['kind']} loss {values['loss']:.4f}"
        done = values["step"]
        pace = (time.perf_counter() - self._started) / max(1, done - self._first)
        left = _duration(pace * (self._total - done))
        return f"step {done:>7}/{self._total} ({100 * done // self._total:>3} %)  {_summary(values)}  {left} left"


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def _odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _summary(values: dict[str, Any]) -> str:
    parts = [f"loss {values['loss']:.4f}", f"norm {values['grad_norm']:.2f}", f"lr {values['lr']:.2e}"]
    parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if values["mfu"] is not None:
        parts.append(f"MFU {100 * values['mfu']:.1f} %")
    if values.get("time/data", 0.0) >= 0.05:
        parts.append(f"{100 * values['time/data']:.0f} % waiting for data")
    if values["skipped"]:
        parts.append(f"{values['skipped']} skipped")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
