"""One line that says how far a comparison has come and how long the rest of it takes."""

from __future__ import annotations

import sys
import threading

from tqdm import tqdm

from latentpt.compare.planning.plan import Plan, PlannedArm
from latentpt.run import RunFolder, read_metrics

Job = tuple[PlannedArm, int]
EVERY = 2.0
PLAIN_EVERY = 60.0


class Progress:
    """A bar over the training FLOPs of all runs of a share, half-finished ones included. Use as a context manager.

    tqdm knows the time left from the FLOPs of this session; where no terminal shows it, it writes a line a minute.
    """

    def __init__(self, plan: Plan, jobs: list[Job]) -> None:
        self._plan, self._jobs = plan, jobs
        self._running: dict[str, Job] = {}
        self._done = sum(self.flops(job) for job in jobs)
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=sum(arm.training_flops for arm, _ in jobs),
            initial=self._done,
            unit="FLOP",
            unit_scale=True,
            desc=f"{len(jobs)} runs",
            mininterval=EVERY if terminal else PLAIN_EVERY,
            smoothing=0,
            dynamic_ncols=terminal,
        )
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self._refresh()
        self._bar.close()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def begin(self, arm: PlannedArm, seed: int, state: str) -> None:
        """A run starts or continues."""
        with self._lock:
            name = self._plan.run_name(arm.name, seed)
            self._running[name] = arm, seed
            self._done -= self.flops((arm, seed))  # counted with the running ones from here on
            number = self._jobs.index((arm, seed)) + 1
        self.say(f"[{number}/{len(self._jobs)}] {arm.name}, seed {seed}: {state}")

    def done(self, arm: PlannedArm, seed: int) -> None:
        """A run is over for this session."""
        with self._lock:
            job = self._running.pop(self._plan.run_name(arm.name, seed), None)
            self._done += self.flops((arm, seed)) if job else 0.0

    def flops(self, job: Job) -> float:
        """Training FLOPs that a run has done, by its metrics, at most those that were planned."""
        arm, seed = job
        folder = RunFolder(self._plan.run_folder(arm.name, seed))
        if folder.summary.is_file():
            return arm.training_flops
        lines = read_metrics(folder.metrics)
        return min(lines[-1]["training_flops"], arm.training_flops) if lines else 0.0

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            running = dict(self._running)
        self._bar.set_postfix_str(", ".join(running), refresh=False)
        self._bar.update(self._done + sum(map(self.flops, running.values())) - self._bar.n)
