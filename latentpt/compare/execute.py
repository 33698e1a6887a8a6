"""Training the planned arms: one launch each, continued where a launch was interrupted, never twice."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

from latentpt.compare.config import ComparisonConfig
from latentpt.compare.launching import Failed, Interrupted, exclusive, launch
from latentpt.compare.plan import Plan, resolve
from latentpt.config import to_yaml
from latentpt.files import write_text
from latentpt.run import RunConfig, RunFolder, read_metrics


def finished(folder: Path) -> bool:
    """Whether the run in a folder was trained to its end: summary.json is written last."""
    return RunFolder(folder).summary.is_file()


def execute(plan: Plan, script: Path, after: Callable[[Plan, str, int], object]) -> None:
    """Train every arm and seed that is not finished, calling after(plan, arm, seed) when a run is.

    Seeds are the outer loop, so that an interrupted comparison has whole rounds of all arms. A run that fails keeps no
    other from being trained; it is named at the end.

    Raises:
        Interrupted: a training was stopped by a signal and saved its state.
        Failed: trainings ended with an error.
    """
    todo = [(arm.name, seed) for seed in plan.comparison.seeds for arm in plan.arms]
    failed = []
    with exclusive(plan.comparison.folder) as lock:
        for number, (arm, seed) in enumerate(todo, start=1):
            folder = plan.run_folder(arm, seed)
            state = "finished" if finished(folder) else "continues" if folder.exists() else "starts"
            print(f"[{number}/{len(todo)}] {arm}, seed {seed}: {state}", flush=True)
            if state != "finished":
                try:
                    launch(script, plan.config_path(arm, seed), plan.comparison.processes, lock)
                except Failed as failure:
                    print(f"error: {failure}", flush=True)
                    failed.append(plan.run_name(arm, seed))
                    continue
                if not finished(folder):
                    raise Interrupted(f"{folder} stopped before its end; the same command continues it")
            after(plan, arm, seed)
    if failed:
        raise Failed(
            f"{len(failed)} of {len(todo)} trainings failed: {', '.join(failed)}; the same command tries them again"
        )


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
            "monitor": run.monitor.model_copy(update={"every": 1}),
            "validation": run.validation.model_copy(update={"every": steps + 1}),
            "output": str(comparison.folder / "probes" / arm),
        }
    )


def probe(comparison: ComparisonConfig, arm: str, script: Path, lock: int) -> float:
    """Train the first steps of one arm and read its speed, the median over the lines after the first quarter."""
    run = probe_config(comparison, arm)
    folder = Path(run.output)
    shutil.rmtree(folder, ignore_errors=True)
    config = folder.with_suffix(".yaml")
    write_text(config, to_yaml(run))
    launch(script, config, comparison.processes, lock)
    lines = read_metrics(RunFolder(folder).metrics)
    measured = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    if len(measured) < min(comparison.probe_steps, run.steps):
        raise Interrupted(f"the speed of arm {arm} is not measured yet; the same command goes on")
    shutil.rmtree(folder)
    return statistics.median(measured[len(measured) // 4 :])
