"""How fast every arm trains, found out by a short training each or from those that are finished."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentpt.compare.config import ComparisonConfig
from latentpt.compare.planning.plan import Plan, PlannedArm, resolve
from latentpt.compare.running.launching import Interrupted, Stopping, exclusive, launch
from latentpt.config import ConfigError, build, to_yaml
from latentpt.files import write_text
from latentpt.run import RunConfig, RunFolder, read_metrics
from latentpt.thoughts.cost import training_flops_per_token
from latentpt.thoughts.registry import make_method


def measure_speeds(
    comparison: ComparisonConfig, script: Path, runs: Mapping[str, RunConfig] | None = None
) -> dict[str, float]:
    """Tokens per second of the named runs (None: of every arm as configured), from a short training each.

    They are kept in speeds.json; one is measured again when its configuration is another one.
    """
    runs = runs if runs is not None else {arm: resolve(comparison, arm) for arm in comparison.arms}
    known = read_speeds(comparison)
    with exclusive(comparison.folder) as lock, Stopping() as stopping:
        for name, run in runs.items():
            short = probe_config(comparison, name, run)
            if name not in known or known[name]["config"] != to_yaml(short):
                speed = probe(comparison, name, short, script, lock, stopping)
                known[name] = {"tokens_per_second": speed, "config": to_yaml(short)}
                write_text(speeds_path(comparison), json.dumps(known, indent=1) + "\n")
    return {name: known[name]["tokens_per_second"] for name in runs}


def speeds_path(comparison: ComparisonConfig) -> Path:
    """Where measured speeds are kept."""
    return comparison.folder / "speeds.json"


def read_speeds(comparison: ComparisonConfig) -> dict[str, Any]:
    """Name -> tokens_per_second and the configuration they were measured with."""
    path = speeds_path(comparison)
    return json.loads(path.read_text()) if path.is_file() else {}


def size_name(arm: PlannedArm) -> str:
    """Name under which the speed of an arm at its size is kept."""
    return arm.arm if arm.size is None else f"{arm.arm}-n{arm.size}"


def measure_plan(plan: Plan, script: Path) -> None:
    """Measure the speed of every arm at every size of a plan."""
    runs = {size_name(arm): build(RunConfig, arm.config) for arm in reversed(plan.arms)}
    measure_speeds(plan.comparison, script, dict(reversed(runs.items())))


def expected_seconds(plan: Plan) -> dict[str, float]:
    """Seconds that one training of each planned arm takes, for the arms whose speed is known.

    Known from finished runs of the same arm and size, else from a probe, else by the FLOPs per second that the ones known
    have in the median.
    """
    speeds = {name: entry["tokens_per_second"] for name, entry in read_speeds(plan.comparison).items()}
    speeds |= finished_speeds(plan)
    rates = [
        speeds[size_name(arm)] * arm.training_flops_per_token for arm in plan.arms if size_name(arm) in speeds
    ]
    if not rates:
        return {}
    middle = float(np.median(rates))
    return {
        arm.name: arm.tokens / speeds.get(size_name(arm), middle / arm.training_flops_per_token)
        for arm in plan.arms
    }


def finished_speeds(plan: Plan) -> dict[str, float]:
    """Tokens per second of each arm and size over its finished runs."""
    tokens, seconds = Counter[str](), Counter[str]()
    for arm, seed in plan.jobs():
        folder = RunFolder(plan.run_folder(arm.name, seed))
        if folder.summary.is_file():
            last = read_metrics(folder.metrics)[-1]
            tokens[size_name(arm)] += last["tokens"]
            seconds[size_name(arm)] += last["seconds"]
    return {name: tokens[name] / seconds[name] for name in tokens if seconds[name] > 0}


def probe_config(comparison: ComparisonConfig, name: str, run: RunConfig) -> RunConfig:
    """The first steps of a run as a run of its own."""
    steps = comparison.probe_steps
    return run.model_copy(
        update={
            "training": run.training.model_copy(update={"stop_at": steps}),
            "monitor": run.monitor.model_copy(update={"every": 1, "report": False}),
            "validation": run.validation.model_copy(update={"every": steps + 1}),
            "output": str(comparison.folder / "probes" / name),
        }
    )


def probe(
    comparison: ComparisonConfig, name: str, run: RunConfig, script: Path, lock: int, stopping: Stopping
) -> float:
    """Train the first steps of one run and read the tokens per second that its training can expect."""
    folder = Path(run.output)
    shutil.rmtree(folder, ignore_errors=True)
    config = folder.with_suffix(".yaml")
    write_text(config, to_yaml(run))
    launch(script, config, comparison.processes, lock, stopping, environment=comparison.environment)
    lines = [line for line in read_metrics(RunFolder(folder).metrics) if line["kind"] == "train"]
    if len(lines) < min(comparison.probe_steps, run.steps):
        raise Interrupted(f"the speed of arm {name} is not measured yet; the same command goes on")
    try:
        speed = expected_speed(run, lines)
    except ConfigError as error:
        raise ConfigError(f"arm {name}: {error}") from None
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
