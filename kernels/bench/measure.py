"""Times, floors and tables for the kernels' benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Row:
    """One implementation of one operation at one size."""

    op: str
    case: str
    implementation: str
    ms: float | None
    """Median milliseconds; None if it does not run here."""
    gigabytes: float
    """Bytes that must move, at least, in 1e9."""
    teraflops: float
    """Products and sums that must be done, in 1e12."""
    floor_ms: float
    """The larger of bytes over this device's copy bandwidth and FLOPs over its rate of large matrix products."""
    note: str = ""

    def cells(self) -> list[str]:
        """The row of a table."""
        if self.ms is None:
            return [self.case, self.implementation, "-", "-", "-", self.note]
        rate = f"{self.gigabytes / self.ms * 1e3:.0f} GB/s"
        if self.teraflops:
            rate = f"{self.teraflops / self.ms * 1e3:.1f} TFLOP/s"
        return [
            self.case,
            self.implementation,
            f"{self.ms:.3f}",
            rate,
            f"{self.floor_ms / self.ms:.0%}",
            self.note,
        ]


@dataclass
class Device:
    """What this device does at best, measured."""

    name: str
    copy_gb_per_s: float
    matmul_tflop_per_s: float

    def floor_ms(self, gigabytes: float, teraflops: float) -> float:
        """Milliseconds below which nothing that moves and computes so much can come."""
        return 1e3 * max(gigabytes / self.copy_gb_per_s, teraflops / self.matmul_tflop_per_s)


def median_ms(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after two, by events on CUDA and by the clock elsewhere."""
    run(), run()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for before, after in marks:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in marks)


def measure_device(device: torch.device, repeats: int, dry: bool) -> Device:
    """Copy bandwidth of 2^28 bytes (read and written) and the rate of a bfloat16 product of 8192 cubed; small if `dry`."""
    source = torch.zeros(2 ** (16 if dry else 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / 1e6 / median_ms(lambda: target.copy_(source), device, repeats)
    n = 128 if dry else 8192
    a = torch.randn(n, n, device=device, dtype=torch.float32 if dry else torch.bfloat16)
    flops = 2 * n**3 / 1e9 / median_ms(lambda: a @ a, device, repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Device(name, copy, flops)


def table(rows: list[Row]) -> str:
    """Rows as a table in Markdown."""
    head = ["case", "implementation", "ms", "rate", "of the floor", "note"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
