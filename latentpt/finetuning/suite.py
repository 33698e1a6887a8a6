"""Several fine-tunings of one task beside one another: arms x seeds, one table with their spread, one page with curves.

OUTPUT/data/            the task, made once
OUTPUT/ARM-SEED.yaml    the configuration of each run
OUTPUT/ARM-SEED/        its folder
OUTPUT/table.md, report.html
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from latentpt.config import ConfigError, Section, build
from latentpt.files import write_text
from latentpt.finetuning import building
from latentpt.finetuning.building import BuildConfig
from latentpt.finetuning.config import FinetuneConfig
from latentpt.finetuning.page import curves
from latentpt.pages.document import document
from latentpt.run import RunFolder, read_metrics


class Arm(Section):
    """One way of fine-tuning."""

    after: str = ""
    """Arm whose best checkpoint of the same seed it starts from; empty: from the common start."""
    note: str = ""
    """What the table says about it."""
    config: dict[str, Any] = {}
    """Values of the fine-tuning that differ from the common ones, as in its YAML."""


class SuiteConfig(Section):
    """Arms x seeds of one task."""

    output: str
    """Folder of everything."""
    data: BuildConfig | None = None
    """The task, made in OUTPUT/data where that is not there yet; null: the common configuration names files."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of every arm."""
    workers: int = 2
    """Runs at a time."""
    common: dict[str, Any]
    """Values that all fine-tunings share, as in their YAML."""
    arms: dict[str, Arm]
    """The arms by name, in the order of the table."""

    @model_validator(mode="after")
    def _check(self) -> SuiteConfig:
        names = list(self.arms)
        for place, (name, arm) in enumerate(self.arms.items()):
            if arm.after and arm.after not in names[:place]:
                raise ValueError(
                    f"arms.{name}.after = {arm.after} is no arm before it; those are {', '.join(names[:place])}"
                )
        if self.workers < 1 or not self.seeds:
            raise ValueError("workers must be at least 1 and seeds must name one seed at least")
        return self

    def run_config(self, name: str, seed: int) -> FinetuneConfig:
        """The fine-tuning of an arm and a seed; raises ConfigError if it cannot work."""
        arm, values = self.arms[name], _merged(self.common, self.arms[name].config)
        values |= {"output": f"{self.output}/{name}-{seed}", "seed": seed}
        if self.data is not None:
            folder = self.data.output
            files = {"train": f"{folder}/train.jsonl", "validation": f"{folder}/validation.jsonl", "test": {"test": f"{folder}/test.jsonl"}}  # fmt: skip
            values["data"] = {**files, **values.get("data", {})}
        if arm.after:
            values["start"] = {"run": f"{self.output}/{arm.after}-{seed}"}
        return build(FinetuneConfig, values)


def run_suite(config: SuiteConfig, trainer: Path) -> str:
    """Make the data, run what is not finished, `workers` at a time, write table and page; returns the table.

    Raises ConfigError when a run fails.
    """
    for name in config.arms:  # refuses what cannot work before anything is made
        config.run_config(name, config.seeds[0])
    if config.data is not None and not (Path(config.data.output) / "test.jsonl").is_file():
        print(f"making {config.data.output}", flush=True)
        building.build(config.data)
    with ThreadPoolExecutor(config.workers) as pool:
        waiting: dict[tuple[str, int], Any] = {}
        for name, arm in config.arms.items():
            for seed in config.seeds:
                before = waiting.get((arm.after, seed))
                waiting[name, seed] = pool.submit(_run, config.run_config(name, seed), trainer, before)
        for future in waiting.values():
            future.result()
    text = table(config)
    write_text(Path(config.output) / "table.md", text + "\n")
    write_text(Path(config.output) / "report.html", suite_page(config, text))
    return text


def _run(config: FinetuneConfig, trainer: Path, before: Any) -> None:
    """One run, after the one it starts from; nothing if it is finished."""
    if before is not None:
        before.result()
    if config.folder.summary.is_file():
        return
    path = config.folder.path.with_suffix(".yaml")
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    with path.with_suffix(".log").open("w") as log:
        code = subprocess.run(
            [sys.executable, str(trainer), "--config", str(path)], stdout=log, stderr=log
        ).returncode
    if code:
        raise ConfigError(f"the run {config.folder.path} failed; its output is in {path.with_suffix('.log')}")
    print(f"{config.folder.path} is done", flush=True)


def outcomes(config: SuiteConfig, name: str) -> list[dict[str, Any]]:
    """Summary and report of an arm's runs that are finished."""
    found = []
    for seed in config.seeds:
        folder = RunFolder(Path(config.output) / f"{name}-{seed}")
        if folder.summary.is_file():
            summary = json.loads(folder.summary.read_text(encoding="utf-8"))
            told = folder.path / "report.json"
            summary["report"] = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else None
            found.append(summary)
    return found


def table(config: SuiteConfig) -> str:
    """Markdown: an arm a line, accuracy on every test set as mean and standard deviation over seeds."""
    arms = {name: outcomes(config, name) for name in config.arms}
    tests = sorted({test for runs in arms.values() for run in runs for test in run["test"]})
    head = [
        "arm",
        *(f"{test}, accuracy %" for test in tests),
        "tokens",
        "latents",
        "another's latents",
        "seconds",
        "",
    ]
    lines = [head, ["---"] * len(head)]
    for name, runs in arms.items():
        if not runs:
            continue
        cells = [_spread([100 * run["test"][test]["accuracy"] for run in runs]) for test in tests]
        first = tests[0]
        cells += [_spread([run["test"][first][key] for run in runs]) for key in ("tokens", "latents")]
        swapped = [_swap(run["report"]) for run in runs]
        cells.append(_spread([value for value in swapped if value is not None]))
        cells.append(_spread([run["seconds"] for run in runs]))
        lines.append([name, *cells, config.arms[name].note])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _swap(report: Mapping[str, Any] | None) -> float | None:
    """Change of accuracy in points when every question gets another's latents; None where there are none."""
    if not report or not report["replaced"]:
        return None
    plain, swapped = report["plain"], report["replaced"]["another question's"]
    return 100 * (swapped[0] / swapped[1] - plain[0] / plain[1])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def suite_page(config: SuiteConfig, text: str) -> str:
    """The table and the curves of every arm's first seed, and what each run says about its latents."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    cells = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows if row[0] != "---"
    )
    seeds = {seed: {name: _accuracies(config, name, seed) for name in config.arms} for seed in config.seeds}
    parts = ["<h1>Latent fine-tuning, arm by arm</h1>", f"<table>{cells}</table>"]
    for seed, lines in seeds.items():
        drawn = {name: line for name, line in lines.items() if line}
        parts += [f"<h2>Accuracy by epoch, seed {seed}</h2>", curves(drawn)]
    parts.append("<h2>Are the latents used?</h2><ul>")
    for name in config.arms:
        for seed, run in zip(config.seeds, outcomes(config, name), strict=False):
            if run["report"] is not None and run["report"]["plain"][3]:
                parts.append(f"<li>{name}, seed {seed}: {run['report']['verdict']}</li>")
    return document("Latent fine-tuning", [*parts, "</ul>"])


def _accuracies(config: SuiteConfig, name: str, seed: int) -> list[tuple[float, float]]:
    metrics = read_metrics(RunFolder(Path(config.output) / f"{name}-{seed}").metrics)
    return [(line["epoch"], line["accuracy"]) for line in metrics if line["kind"] == "validation"]


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Values section by section, the arm's own winning."""
    merged = dict(common)
    for key, value in own.items():
        old = merged.get(key)
        merged[key] = (
            _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged
