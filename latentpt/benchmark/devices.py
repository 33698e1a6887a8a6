"""The devices that a training may run on: what is known of them by name, nothing assumed."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from latentpt.config import ConfigError, nearest
from latentpt.run import RunConfig
from latentpt.training.monitor import PEAK_TFLOPS

GIB = 2**30

# Memory in GiB as the vendors' data sheets have it, by a part of the device's name; where a name comes in several sizes, none.
MEMORY_GIB = {
    "H200": 141.0,
    "H100": 80.0,
    "GH200": 96.0,
    "B200": 180.0,
    "A10G": 24.0,
    "A40": 48.0,
    "L40S": 48.0,
    "L4": 24.0,
    "RTX 4090": 24.0,
    "RTX 3090": 24.0,
    "MI300X": 192.0,
    "MI250X": 128.0,
}


CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """One device of a training."""

    name: str
    memory: float | None
    """Bytes; None where nobody said."""
    peak: float | None
    """FLOP/s in the training's precision; None where it is not known."""


def device_of(config: RunConfig, name: str | None, memory_gib: float | None, devices: int = 1) -> Device:
    """The device of a name, or the present one where there is none, with what was said of it instead of what is known.

    Processes on a CPU, of which there are `devices`, share its memory.
    monitor.peak_tflops goes before the table, which holds bf16 and fp16 peaks only. Raises ConfigError for an unknown name.
    """
    peak = config.monitor.peak_tflops
    memory: float | None
    if name is None:
        name, memory = _present()
        memory /= devices if name == CPU else 1
    else:
        memory = next((size * GIB for part, size in MEMORY_GIB.items() if part in name), None)
        if memory is None and peak is None and not any(part in name for part in PEAK_TFLOPS):
            raise ConfigError(
                f"--device {name} is not known; the nearest that is: {nearest(name, PEAK_TFLOPS)}"
            )
    if peak is None and config.training.precision != "fp32":
        peak = next((flops for part, flops in PEAK_TFLOPS.items() if part in name), None)
    return Device(
        name,
        memory_gib * GIB if memory_gib is not None else memory,
        peak * 1e12 if peak is not None else None,
    )


def _present() -> tuple[str, float]:
    """Name and memory of the device that a training here would run on."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.name, float(properties.total_memory)
    return CPU, float(psutil.virtual_memory().total)
