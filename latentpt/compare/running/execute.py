"""Training the planned arms: one launch each, continued where a launch was interrupted, never twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from latentpt.compare.planning.plan import Plan
from latentpt.compare.running.launching import Failed, Interrupted, exclusive, launch
from latentpt.run import RunFolder


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
