"""Training the planned arms: one launch each, continued where a launch was interrupted, never twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from latentpt.compare.config import ComparisonConfig
from latentpt.compare.plan import Plan, resolve
from latentpt.config import ConfigError, to_yaml
from latentpt.files import write_text
from latentpt.run import RunFolder, read_metrics


class Interrupted(Exception):
    """A training stopped before its end without an error; running the comparison again continues it."""


class Failed(ConfigError):
    """A training ended with an error, which stands in its output above."""


def finished(folder: Path) -> bool:
    """Whether the run in a folder was trained to its end: summary.json is written last."""
    return RunFolder(folder).summary.is_file()


def execute(plan: Plan, script: Path, after: Callable[[Plan, str, int], object]) -> None:
    """Train every arm and seed that is not finished, calling after(plan, arm, seed) when a run is.

    Seeds are the outer loop, so that an interrupted comparison has whole rounds of all arms.

    Raises:
        Interrupted: a training was stopped by a signal and saved its state.
        Failed: a training ended with an error.
    """
    todo = [(arm.name, seed) for seed in plan.comparison.seeds for arm in plan.arms]
    with exclusive(plan.comparison.folder):
        for number, (arm, seed) in enumerate(todo, start=1):
            folder = plan.run_folder(arm, seed)
            state = "finished" if finished(folder) else "continues" if folder.exists() else "starts"
            print(f"[{number}/{len(todo)}] {arm}, seed {seed}: {state}", flush=True)
            if state != "finished":
                launch(script, plan.config_path(arm, seed), plan.comparison.processes)
                if not finished(folder):
                    raise Interrupted(f"{folder} stopped before its end; the same command continues it")
            after(plan, arm, seed)


def launch(script: Path, config: Path, processes: int | None) -> None:
    """Run one training to its end or until a signal stops it; signals to us reach it.

    Several processes are started by DeepSpeed's launcher; one needs none.

    Raises:
        Failed: it ended with an error.
    """
    count = processes or devices()
    command = [sys.executable, str(script), "--config", str(config)]
    if count > 1:
        launcher = [
            "-m",
            "deepspeed.launcher.runner",
            "--num_accelerators",
            str(count),
            "--master_port",
            str(free_port()),
        ]
        command[1:1] = launcher
    # Threads that wait by spinning slow a training tenfold as soon as anything else wants a core.
    threads = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(max(1, cores() // count))}
    environment = {**threads, **os.environ}
    process = subprocess.Popen(command, env=environment)
    with forwarding_signals(process):
        code = process.wait()
    if code not in (0, -signal.SIGTERM, -signal.SIGINT):
        raise Failed(f"training {config.stem} ended with exit code {code}; its messages stand above")


def devices() -> int:
    """GPUs of this machine, or one process where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    """A port for the processes' rendezvous, so that two comparisons can share a machine."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def forwarding_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGTERM on to the child and leave Ctrl-C to it (a terminal sends it to both): it saves and ends."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder of a comparison; a second `run` in it is refused instead of training the same arm at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: this comparison is being run by another process") from None
        yield


def measure_speeds(comparison: ComparisonConfig, script: Path) -> dict[str, float]:
    """Tokens per second of every arm, from a short training each; kept in speeds.json and measured once."""
    path = comparison.folder / "speeds.json"
    speeds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    for arm in comparison.arms:
        if arm not in speeds:
            speeds[arm] = probe(comparison, arm, script)
            write_text(path, json.dumps(speeds, indent=1) + "\n")
    return speeds


def probe(comparison: ComparisonConfig, arm: str, script: Path) -> float:
    """Train the first steps of one arm and read its speed, the median over the lines after the first quarter."""
    folder = comparison.folder / "probes" / arm
    shutil.rmtree(folder, ignore_errors=True)
    run = resolve(comparison, arm)
    steps = comparison.probe_steps
    training = run.training.model_copy(update={"stop_at": steps})
    monitor = run.monitor.model_copy(update={"every": 1})
    validation = run.validation.model_copy(update={"every": steps + 1})
    run = run.model_copy(
        update={"training": training, "monitor": monitor, "validation": validation, "output": str(folder)}
    )
    config = folder.with_suffix(".yaml")
    write_text(config, to_yaml(run))
    launch(script, config, comparison.processes)
    lines = read_metrics(RunFolder(folder).metrics)
    measured = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    shutil.rmtree(folder)
    return statistics.median(measured[len(measured) // 4 :])
