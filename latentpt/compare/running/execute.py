"""Training the planned runs: one launch each, several at once, continued where a launch was interrupted, never twice."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from latentpt.compare.planning.folder import refuse_another
from latentpt.compare.planning.plan import Plan, PlannedArm
from latentpt.compare.running.launching import (
    Busy,
    Failed,
    Interrupted,
    Stopping,
    devices,
    exclusive,
    launch,
)
from latentpt.compare.running.progress import Progress
from latentpt.run import RunFolder

After = Callable[[Plan, str, int], object]


class Share(NamedTuple):
    """Which of the runs, how many at once, for how long."""

    task: tuple[int, int] = (0, 1)
    """(i, n): runs i, i + n, .. of the plan's order."""
    at_once: int | None = None
    """Trainings side by side; None: as many as the devices allow."""
    minutes: float | None = None
    """When to stop, trainings included, which save; None: at the end."""

    def after(self, seconds: float) -> Share:
        """The same with what is left of its time after so many seconds."""
        return self if self.minutes is None else self._replace(minutes=max(self.minutes - seconds / 60, 0))


def finished(folder: Path) -> bool:
    """Whether the run in a folder was trained to its end: summary.json is written last."""
    return RunFolder(folder).summary.is_file()


def execute(plan: Plan, script: Path, after: After, share: Share | None = None) -> None:
    """Train every run of this share that is not finished, calling after(plan, arm, seed) when one is.

    Runs are begun in the plan's order. Each is claimed by a lock of its own, so that any number of processes can work on
    one comparison. A run that fails keeps no other from being trained; it is named at the end.

    Raises:
        Interrupted: a signal came or the time was up; trainings have saved their state.
        Busy: what is left is being trained by other processes.
        Failed: trainings ended with an error.
    """
    share = share or Share()
    task, tasks = share.task
    jobs = plan.jobs()[task::tasks]
    at_once = share.at_once or max(1, devices() // (plan.comparison.processes or devices()))
    with Stopping(share.minutes) as stopping, Progress(plan, jobs) as progress:
        crew = Crew(plan, script, after, jobs, at_once, stopping, progress)
        with ThreadPoolExecutor(at_once) as pool:
            for worker in [pool.submit(crew.work, place) for place in range(at_once)]:
                worker.result()
    if stopping.reason is not None:
        raise Interrupted(f"{stopping.reason}; the same command continues")
    if crew.failed:
        raise Failed(
            f"{len(crew.failed)} of {len(jobs)} trainings failed: {', '.join(sorted(crew.failed))}; "
            "the same command tries them again"
        )
    if crew.elsewhere:
        raise Busy(f"{len(crew.elsewhere)} of {len(jobs)} runs are being trained by other processes")


class Crew:
    """Workers that take runs from one list until it is empty or they are told to stop."""

    def __init__(
        self,
        plan: Plan,
        script: Path,
        after: After,
        jobs: list[tuple[PlannedArm, int]],
        at_once: int,
        stopping: Stopping,
        progress: Progress,
    ) -> None:
        self.plan, self.script, self.after, self.at_once = plan, script, after, at_once
        self.stopping, self.progress = stopping, progress
        self.waiting = deque(jobs)
        self.failed: list[str] = []
        self.elsewhere: list[str] = []
        self.measuring = threading.Lock()  # of measurements in this process one at a time

    def work(self, place: int) -> None:
        """Do one run after the other; `place` says which of the devices is this worker's."""
        while self.stopping.reason is None:
            try:
                arm, seed = self.waiting.popleft()
            except IndexError:
                return
            name = self.plan.run_name(arm.name, seed)
            try:
                with exclusive(self.plan.comparison.folder / "claims" / name) as lock:
                    self.train(arm, seed, place, lock)
                    self.measure(arm, seed)
            except Busy:
                self.elsewhere.append(name)
            except Failed as failure:
                self.progress.say(f"error: {failure}")
                self.failed.append(name)
            except Interrupted as stop:
                self.stopping.stop(str(stop).partition(";")[0])
            self.progress.done(arm, seed)

    def train(self, arm: PlannedArm, seed: int, place: int, lock: int) -> None:
        """Train one run to its end, unless it is."""
        plan, processes = self.plan, self.plan.comparison.processes
        folder, name = plan.run_folder(arm.name, seed), plan.run_name(arm.name, seed)
        refuse_another(RunFolder(folder), plan.run_config(arm, seed))
        if finished(folder):
            return
        self.progress.begin(arm, seed, "continues" if folder.exists() else "starts")
        log = plan.comparison.folder / "logs" / f"{name}.log"
        config = plan.config_path(arm.name, seed)
        own = plan.comparison.environment
        launch(self.script, config, processes, lock, self.stopping, log, own, self.at_once, place)
        if not finished(folder):
            raise Interrupted(f"{folder} stopped before its end; the same command continues it")

    def measure(self, arm: PlannedArm, seed: int) -> None:
        """Measure a finished run."""
        with self.measuring:
            self.after(self.plan, arm.name, seed)
