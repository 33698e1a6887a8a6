"""What was measured, kept: one entry for whatever was asked of whatever weights, and no entry is ever lost to another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentpt.config import ConfigError
from latentpt.files import write_text
from latentpt.pages.tables import text_table

FILE = "results.json"


@dataclass(frozen=True)
class Figures:
    """The numbers that one measurement gives."""

    metrics: dict[str, float]
    """Metric -> value."""
    errors: dict[str, float]
    """Metric -> standard error, where it is known."""
    items: int
    """Samples, questions or documents behind them."""


@dataclass(frozen=True)
class Measurement:
    """One answer about one model."""

    name: str
    """What was measured: a task, a held-out source with its forward, the diagnostics."""
    settings: dict[str, Any]
    """How it was asked, as JSON takes it."""
    model: str
    """Which weights answered, see `thoughts.identity`."""
    step: int | None
    """Checkpoint of the run that they come from; None for a published model."""
    figures: Figures
    """What came out."""
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    """When."""

    @property
    def key(self) -> str:
        """Two measurements of one key are the same question; the later one stands."""
        return json.dumps([self.name, self.settings, self.model], sort_keys=True)


def read_results(folder: Path) -> list[Measurement]:
    """Everything kept in a folder of results, the oldest first. Raises ConfigError for a file of another form."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["measurements"]
        return [Measurement(**entry | {"figures": Figures(**entry["figures"])}) for entry in entries]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path}: holds no measurements as they are kept today; set it aside or name another --output"
        ) from None


def keep_results(folder: Path, new: Iterable[Measurement]) -> list[Measurement]:
    """Add measurements to a folder's results.json and table.txt; returns all of them, in the order they were first made."""
    kept = {known.key: known for known in read_results(folder)} | {one.key: one for one in new}
    found = list(kept.values())
    entries = [asdict(one) for one in found]
    write_text(folder / FILE, json.dumps({"measurements": entries}, indent=1) + "\n")
    write_text(folder / "table.txt", table(found) + "\n")
    return found


def of_weights(measurements: Iterable[Measurement], model: str) -> dict[str, dict[str, float]]:
    """Name -> metrics of what was measured of these weights; of several ways of asking the last one."""
    return {one.name: one.figures.metrics for one in measurements if one.model == model}


def table(measurements: Iterable[Measurement]) -> str:
    """A line for every figure, with its standard error and the number of items behind it."""
    rows = []
    for one in measurements:
        for metric, value in one.figures.metrics.items():
            error = one.figures.errors.get(metric)
            step = "" if one.step is None else f"{one.step:,}"
            rows.append(
                [
                    one.name, metric, number(value), "" if error is None else f"± {number(error)}",
                    f"{one.figures.items:,}", step, said(one.settings),
                ]
            )  # fmt: skip
    return text_table(["what", "metric", "value", "standard error", "items", "step", "asked"], rows)


def number(value: float) -> str:
    """A figure with four digits behind the point; counts in full. A diverged model's may be nan or inf."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else f"{value:.4f}"


def said(settings: Mapping[str, Any]) -> str:
    """Settings in a few words; what was not asked for is left out."""
    shown = {key: value for key, value in settings.items() if value not in (None, False) and key != "source"}
    return ", ".join(key if value is True else f"{key} {value}" for key, value in shown.items())
