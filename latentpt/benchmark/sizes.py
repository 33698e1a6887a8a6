"""Pythia's sizes, plain and thinking: what each takes on how many devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from latentpt.benchmark.devices import GIB, device_of
from latentpt.benchmark.estimate import duration, estimate
from latentpt.config import ConfigError
from latentpt.training.start import load_run_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEVICE, MFU = "H100", 0.4
"""What the table is for; the share of the peak is stated, not measured."""
DEVICES = {"70m": 1, "160m": 1, "410m": 8, "1b": 8, "1.4b": 32, "2.8b": 64}
THOUGHTS = {
    "vanilla": [],
    "N = 1, stage_causal": ["thoughts.method=latent", "thoughts.num_thoughts=1", "thoughts.visibility=stage_causal"],
    "N = 1, jacobi, K = 2 or 3": ["thoughts.method=latent", "thoughts.num_thoughts=1", "thoughts.refinements=[2, 3]"],
}  # fmt: skip
MICRO_BATCH = ["training.micro_batch=4", "training.checkpoint_activations=true"]


class Row(NamedTuple):
    """One line of the table, as text."""

    size: str
    thoughts: str
    devices: str
    state: str
    memory: str
    speed: str
    time: str

    @property
    def text(self) -> str:
        """As Markdown."""
        return "| " + " | ".join(self) + " |"


HEAD = Row("size", "thoughts", "devices", "state, GiB", "in all, GiB", "tokens/s", "300B tokens")


def row(size: str, thoughts: str) -> Row:
    """What a size with these thoughts takes on its number of devices."""
    file = CONFIGS / f"pythia-{size}.yaml"
    if not file.exists():
        raise ConfigError(f"{file} is not there: the table needs the repository")
    config = load_run_config(file, [*MICRO_BATCH, *THOUGHTS[thoughts]])
    devices, device = DEVICES[size], device_of(config, DEVICE, None)
    found = estimate(config, devices)
    assert device.peak is not None  # it is in the table of peaks
    rate = MFU * device.peak * devices
    return Row(
        size,
        thoughts,
        f"{devices} x {DEVICE}",
        f"{found.state.held / GIB:.1f}",
        f"{found.device_bytes(config.training.micro_batch) / GIB:.1f}",
        f"{rate / found.cost.total:,.0f}",
        duration(found.seconds(rate)),
    )


def table() -> Iterator[str]:
    """All of them, line by line, in Markdown."""
    yield HEAD.text
    yield "|" + "---|" * len(HEAD)
    for size in DEVICES:
        for thoughts in THOUGHTS:
            yield row(size, thoughts).text
