"""How fast every arm trains, found out by a short training each, for budgets in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentpt.compare.config import ComparisonConfig
from latentpt.compare.launching import Interrupted, exclusive, launch
from latentpt.compare.plan import resolve
from latentpt.config import ConfigError, to_yaml
from latentpt.files import write_text
from latentpt.run import RunConfig, RunFolder, read_metrics
from latentpt.thoughts.cost import training_flops_per_token
from latentpt.thoughts.registry import make_method


def measure_speeds(comparison: ComparisonConfig, script: Path) -> dict[str, float]:
    """Tokens per second of every arm, from a short training each.

    They are kept in speeds.json; an arm is measured again when its configuration is another one.
    """
    path = comparison.folder / "speeds.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    with exclusive(comparison.folder) as lock:
        for arm in comparison.arms:
            config = to_yaml(probe_config(comparison, arm))
            if arm not in known or known[arm]["config"] != config:
                speed = probe(comparison, arm, script, lock)
                known[arm] = {"tokens_per_second": speed, "config": config}
                write_text(path, json.dumps(known, indent=1) + "\n")
    return {arm: known[arm]["tokens_per_second"] for arm in comparison.arms}


def probe_config(comparison: ComparisonConfig, arm: str) -> RunConfig:
    """The first steps of one arm as a run of its own."""
    run, steps = resolve(comparison, arm), comparison.probe_steps
    return run.model_copy(
        update={
            "training": run.training.model_copy(update={"stop_at": steps}),
            "monitor": run.monitor.model_copy(update={"every": 1, "report": False}),
            "validation": run.validation.model_copy(update={"every": steps + 1}),
            "output": str(comparison.folder / "probes" / arm),
        }
    )


def probe(comparison: ComparisonConfig, arm: str, script: Path, lock: int) -> float:
    """Train the first steps of one arm and read the tokens per second that its training can expect."""
    run = probe_config(comparison, arm)
    folder = Path(run.output)
    shutil.rmtree(folder, ignore_errors=True)
    config = folder.with_suffix(".yaml")
    write_text(config, to_yaml(run))
    launch(script, config, comparison.processes, lock)
    lines = [line for line in read_metrics(RunFolder(folder).metrics) if line["kind"] == "train"]
    if len(lines) < min(comparison.probe_steps, run.steps):
        raise Interrupted(f"the speed of arm {arm} is not measured yet; the same command goes on")
    try:
        speed = expected_speed(run, lines)
    except ConfigError as error:
        raise ConfigError(f"arm {arm}: {error}") from None
    shutil.rmtree(folder)
    return speed


def expected_speed(run: RunConfig, lines: Sequence[dict[str, Any]]) -> float:
    """Tokens per second of a training from the metrics of single steps, of which the first quarter warms up.

    Where the number of refinements is drawn, few steps do not show every number as often as a whole training does, and the
    middle one says nothing about the others. Each costs what its FLOPs say, though: the seconds of a token are a line
    over its counted FLOPs, drawn through the steps by Theil and Sen's medians, since now and then something else holds a
    step up; the training expects the point of the line at its mean FLOPs. Where refinements adapt to residuals the
    mean is not known, and the mean over the steps is taken.

    Raises:
        ConfigError: the steps drew one number of refinements where there are several.
    """
    tokens, flops = (np.diff([0, *(line[key] for line in lines)]) for key in ("tokens", "training_flops"))
    seconds = np.array([1 / line["tokens_per_second"] for line in lines])
    costs, seconds = (flops / tokens)[len(lines) // 4 :], seconds[len(lines) // 4 :]
    if run.thoughts.residual_target is not None:
        return float(1 / seconds.mean())
    first, second = np.triu_indices(len(costs), k=1)
    differ = ~np.isclose(costs[first], costs[second], rtol=1e-6)
    if not differ.any():
        if len(make_method(run.thoughts, run.model).choices(step=0)) > 1:
            raise ConfigError(
                f"the {len(costs)} probed steps after warming up drew one number of refinements, too few to know the speed "
                "of the others; raise probe_steps to at least 30"
            )
        return float(1 / np.median(seconds))
    slope = np.median((seconds[second] - seconds[first])[differ] / (costs[second] - costs[first])[differ])
    mean = training_flops_per_token(run.model, run.thoughts, run.data.sequence_length)
    return float(1 / (np.median(seconds - slope * costs) + slope * mean))
