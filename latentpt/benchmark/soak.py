"""A soak: a training that is disturbed again and again, beside one that is not; what it costs, and what it leaves behind.

Both are started by a launcher as any training is, with several ranks. What disturbs the second, a signal to one of its
processes, is drawn from a seed. All that happens is seen from outside: the processes, the run folder, the metrics.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from latentpt.config import ConfigError, to_yaml
from latentpt.files import write_text
from latentpt.run import RunConfig, RunFolder, read_metrics
from latentpt.run.checkpoints import MARK, committed, step_of

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"
Launcher = Literal["deepspeed", "torchrun"]
MODULES = {"deepspeed": "deepspeed.launcher.runner", "torchrun": "torch.distributed.run"}
PROCESSES = {"deepspeed": ("rank", "launcher", "runner"), "torchrun": ("rank", "runner")}
"""Whom a signal may meet: a rank, DeepSpeed's inner launcher, the command that was started."""
SETTLING = 0.25
"""Share of a training after which its memory counts: what is made once has been made by then."""
GROWTH_MIB, GROWTH = 4.0, 2
"""Most that memory in MiB, and handles and threads each, may grow from there to the end."""
SAVING = 10
"""Steps that a training may make while a checkpoint is written: so many more than an interval are made again."""


class SoakError(ConfigError):
    """A training did not stand what it should."""

    exit_code = 1


class Fault(NamedTuple):
    """A signal to one of the processes of a training."""

    step: int
    """It is sent once metrics of this step are written."""
    process: str
    signal: str
    delay: float
    """Seconds to wait then, so that it comes at any moment of a step or a save."""
    rank: int
    """Which one, where the process is a rank."""


def draw_faults(
    seed: int,
    steps: int,
    between: tuple[int, int],
    signals: Sequence[str],
    processes: Sequence[str],
    ranks: int,
) -> list[Fault]:
    """Every signal to every process in a drawn order, again and again, `between` so many steps apart, before `steps`."""
    chance = random.Random(seed)
    pairs = list(itertools.product(processes, signals))
    faults: list[Fault] = []
    step = chance.randint(*between)
    while step < steps:
        for process, name in chance.sample(pairs, len(pairs)):
            if step < steps:
                faults.append(Fault(step, process, name, chance.uniform(0, 0.2), chance.randrange(ranks)))
            step += chance.randint(*between)
    return faults


class Sample(NamedTuple):
    """What the ranks hold at a step: the largest of them in MiB and numbers."""

    step: int
    rss_mib: float
    handles: int
    threads: int
    processes: int
    """Of the whole training, launcher and all."""


@dataclass
class Outcome:
    """What became of a training after a fault."""

    fault: Fault
    step: int
    """The last step in its metrics when it had ended."""
    saved_before: int
    """The newest checkpoint when the signal was sent."""
    resumed: int
    """The newest checkpoint when it had ended: where the next start goes on from."""
    seconds: float
    """From the signal until no process was left."""
    exit_code: int
    left: int
    """Processes that had to be ended."""
    samples: list[Sample]
    """Of the start that the fault ended."""

    @property
    def lost(self) -> int:
        """Steps that must be made again."""
        return self.step - self.resumed

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **vars(self),
            "fault": self.fault._asdict(),
            "samples": [sample._asdict() for sample in self.samples],
        }

    @staticmethod
    def load(values: dict[str, Any]) -> Outcome:
        """Inverse of `dump`."""
        samples = [Sample(**sample) for sample in values["samples"]]
        return Outcome(**{**values, "fault": Fault(**values["fault"]), "samples": samples})


@dataclass
class Training:
    """One start of a training under a launcher, as it is seen from outside."""

    folder: RunFolder
    process: subprocess.Popen[bytes]
    samples: list[Sample] = field(default_factory=list)

    def tree(self) -> dict[str, list[psutil.Process]]:
        """Its processes: the runner, launchers below it, ranks in their order."""
        found: dict[str, list[psutil.Process]] = {"runner": [], "launcher": [], "rank": [], "other": []}
        with contextlib.suppress(psutil.Error):
            runner = psutil.Process(self.process.pid)
            found["runner"].append(runner)
            for child in runner.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = child.cmdline()
                    launches = "deepspeed.launcher.launch" in words
                    ranks = str(SCRIPT) in words and "RANK" in child.environ()
                    found["launcher" if launches else "rank" if ranks else "other"].append(child)
        with contextlib.suppress(psutil.Error):
            found["rank"].sort(key=lambda process: int(process.environ()["RANK"]))
        return found

    def stop(self) -> None:
        """Have it saved and stopped if it still trains: nobody looks on any more."""
        for process in self.tree()["rank"] if self.process.poll() is None else []:
            with contextlib.suppress(psutil.Error):
                process.terminate()

    def look(self, step: int) -> None:
        """Take a sample."""
        tree = self.tree()
        with contextlib.suppress(psutil.Error, ValueError):
            ranks = tree["rank"]
            self.samples.append(
                Sample(
                    step,
                    max(rank.memory_info().rss for rank in ranks) / 2**20,
                    max(rank.num_fds() for rank in ranks),
                    max(rank.num_threads() for rank in ranks),
                    sum(map(len, tree.values())),
                )
            )

    def wait_for(self, step: int, every: int) -> None:
        """Wait until metrics of `step` are written or the training has ended; take a sample each `every` steps."""
        done = last_step(self.folder)
        due = done + every
        while done < step and self.process.poll() is None:
            time.sleep(0.05)
            done = last_step(self.folder)
            if done >= due:
                self.look(done)
                due = done - done % every + every


def start(config: Path, folder: RunFolder, log: Path, launcher: Launcher, ranks: int) -> Training:
    """Start the training of a configuration file with `ranks` processes; what it says goes to `log`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    count = "--nproc_per_node" if launcher == "torchrun" else "--num_accelerators"
    command = [sys.executable, "-m", MODULES[launcher], count, str(ranks), "--master_port", port]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, str(SCRIPT), "--config", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    return Training(folder, process)


def last_step(folder: RunFolder) -> int:
    """The step of the last line of metrics that is whole."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def newest(folder: RunFolder) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    saved = committed(folder.checkpoints)
    return step_of(saved[-1]) if saved else 0


def disturb(training: Training, fault: Fault, grace: float) -> Outcome:
    """Send a signal, wait until all processes have ended, and say what became of the training."""
    time.sleep(fault.delay)
    tree = training.tree()
    everybody = [process for processes in tree.values() for process in processes]
    saved = newest(training.folder)
    met = tree[fault.process]
    began = time.monotonic()
    with contextlib.suppress(psutil.Error):
        met[fault.rank % len(met)].send_signal(signal.Signals[f"SIG{fault.signal}"])
    # The command was started by this process: nobody else can bury it, and psutil takes it for alive until then.
    with contextlib.suppress(subprocess.TimeoutExpired):
        training.process.wait(grace)
    _, left = psutil.wait_procs(everybody, timeout=max(1.0, grace - (time.monotonic() - began)))
    seconds = time.monotonic() - began
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    code = training.process.wait()
    step = last_step(training.folder)
    resumed = newest(training.folder)
    return Outcome(fault, step, saved, resumed, seconds, code, len(left), training.samples)


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """By how much each figure is larger at the end of a training than after its first quarter: medians of a quarter each."""
    if not samples:
        return {}
    settled = [sample for sample in samples if sample.step >= SETTLING * samples[-1].step]
    quarter = max(1, len(settled) // 4)
    return {
        name: statistics.median(getattr(sample, name) for sample in settled[-quarter:])
        - statistics.median(getattr(sample, name) for sample in settled[:quarter])
        for name in ("rss_mib", "handles", "threads", "processes")
    }


@dataclass
class Soak:
    """A soak in a folder; `run` does it."""

    config: RunConfig
    folder: Path
    launcher: Launcher
    ranks: int
    faults: list[Fault]
    every: int
    """Steps between samples."""
    grace: float
    """Seconds within which no process may be left after a fault."""
    say: Callable[[str], object]
    samples: list[Sample] = field(default_factory=list)
    """Of the undisturbed training."""
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self) -> None:
        """Train undisturbed, then disturbed; soak.json has all that was seen. Cut off, it goes on where it was.

        Raises SoakError where the second is not what the first is, or either left or lost something.
        """
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else, under nohup, the trainings ignore it as well
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        self.take_up()
        if not self.of("calm").summary.exists():
            training = self.begin("calm")
            self.end("calm", training)
            self.samples += training.samples
            self.keep()
        self.say(f"undisturbed: {self.config.steps} steps")
        for fault in self.faults[len(self.outcomes) :]:
            self.outcomes.append(self.meet(fault))
            self.keep()
        if not self.of("disturbed").summary.exists():
            self.end("disturbed", self.begin("disturbed"))
        problems = [*self.differences(), *self.losses(self.outcomes), *grown(self.samples)]
        self.say(summary(self.samples, self.outcomes))
        if problems:
            raise SoakError("; ".join(problems))

    @property
    def file(self) -> Path:
        """What was seen so far."""
        return self.folder / "soak.json"

    def keep(self) -> None:
        """Write down what was seen."""
        found = {
            "config": self.config.model_dump(mode="json"),
            "faults": [fault._asdict() for fault in self.faults],
            "samples": [sample._asdict() for sample in self.samples],
            "outcomes": [outcome.dump() for outcome in self.outcomes],
        }
        write_text(self.file, json.dumps(found, indent=1) + "\n")

    def take_up(self) -> None:
        """Read what was seen before this start; raises ConfigError if that was another soak."""
        if not self.file.exists():
            if self.folder.exists():
                raise ConfigError(
                    f"{self.folder} holds no soak that could go on; name a folder that is not there"
                )
            self.keep()
        found = json.loads(self.file.read_text(encoding="utf-8"))
        if found["config"] != self.config.model_dump(mode="json") or found["faults"] != [
            f._asdict() for f in self.faults
        ]:
            raise ConfigError(
                f"{self.folder} holds a soak of another configuration or seed; name another folder"
            )
        self.samples = [Sample(**values) for values in found["samples"]]
        self.outcomes = [Outcome.load(values) for values in found["outcomes"]]

    def of(self, name: str) -> RunFolder:
        """The run folder of one of the two trainings."""
        return RunFolder(self.folder / name)

    def begin(self, name: str) -> Training:
        """Start one of the two trainings, or go on with it."""
        file = self.folder / f"{name}.yaml"
        write_text(file, to_yaml(self.config.model_copy(update={"output": str(self.of(name).path)})))
        training = start(file, self.of(name), self.folder / f"{name}.log", self.launcher, self.ranks)
        atexit.register(training.stop)
        return training

    def end(self, name: str, training: Training) -> None:
        """Wait for a training's end of its own accord."""
        training.wait_for(self.config.steps + 1, self.every)
        if training.process.wait() or not self.of(name).summary.exists():
            raise SoakError(f"the {name} training did not come to its end; {self.folder / name}.log says why")

    def meet(self, fault: Fault) -> Outcome:
        """Go on with the disturbed training until a fault, and see what becomes of it."""
        training = self.begin("disturbed")
        training.wait_for(fault.step, self.every)
        if training.process.poll() is not None:
            raise SoakError(
                f"the disturbed training ended by itself before step {fault.step}; {self.folder}/disturbed.log says why"
            )
        outcome = disturb(training, fault, self.grace)
        self.say(
            f"step {outcome.step}: {fault.signal} to the {fault.process}; ended in {outcome.seconds:.1f} s with code "
            f"{outcome.exit_code}, goes on from {outcome.resumed}"
        )
        return outcome

    def differences(self) -> list[str]:
        """Where the disturbed training is not bit by bit the undisturbed one: its measurements, its last checkpoint."""
        found = []
        calm, disturbed = (self.of(name) for name in ("calm", "disturbed"))
        for kind, keys in (("train", ("loss", "grad_norm", "lr")), ("validation", ("loss",))):
            ours, theirs = (
                [
                    (line["step"], *(line[key] for key in keys))
                    for line in read_metrics(folder.metrics)
                    if line["kind"] == kind
                ]
                for folder in (calm, disturbed)
            )
            if ours != theirs:
                first = next((a for a, b in zip(ours, theirs, strict=False) if a != b), ours[-1])
                found.append(f"{kind} differs from step {first[0]} on")
        marks = [(committed(folder.checkpoints)[-1] / MARK).read_bytes() for folder in (calm, disturbed)]
        weights = [
            {name: record for name, record in json.loads(mark).items() if name.endswith(".safetensors")}
            for mark in marks
        ]
        if not weights[0] or weights[0] != weights[1]:
            found.append("the last checkpoints differ")
        return found

    def losses(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Checkpoints that were there and are not, steps lost beyond an interval, processes left."""
        found = []
        for outcome in outcomes:
            where = f"{outcome.fault.signal} to the {outcome.fault.process} at step {outcome.step}"
            if outcome.resumed < outcome.saved_before:
                found.append(f"{where}: the checkpoint of step {outcome.saved_before} is gone")
            if outcome.lost > self.config.checkpoint.every + SAVING:
                found.append(f"{where}: {outcome.lost} steps are lost")
            if outcome.left:
                found.append(f"{where}: {outcome.left} processes were left after {self.grace:g} s")
        return found


def grown(samples: Sequence[Sample]) -> list[str]:
    """Figures that grow from a training's first quarter to its end."""
    limits = {"rss_mib": GROWTH_MIB, "handles": GROWTH, "threads": GROWTH, "processes": 0}
    found = growth(samples)
    return [
        f"{name} grows by {found[name]:g}" for name, limit in limits.items() if found.get(name, 0) > limit
    ]


def summary(samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> str:
    """Two tables for a document: what happened at each fault, what the ranks held at each step."""
    lines = [
        "| step | signal | to | no process left after | exit code | goes on from | steps made again | "
        "memory of a rank in that start, MiB |"
    ]
    lines.append("|" + "---|" * 8)
    for o in outcomes:
        who = f"rank {o.fault.rank}" if o.fault.process == "rank" else o.fault.process
        memory = f"{o.samples[0].rss_mib:.1f} to {o.samples[-1].rss_mib:.1f}" if o.samples else "-"
        lines.append(
            f"| {o.step} | {o.fault.signal} | {who} | {o.seconds:.1f} s | {o.exit_code} | {o.resumed} | {o.lost} | {memory} |"
        )
    lines += ["", "| step | memory of a rank, MiB | handles | threads | processes |", "|" + "---|" * 5]
    lines += [f"| {s.step} | {s.rss_mib:.1f} | {s.handles} | {s.threads} | {s.processes} |" for s in samples]
    return "\n".join(lines)
