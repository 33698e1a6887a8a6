"""The folder of a run.

runs/NAME/
    config.yaml          the resolved configuration
    config-until-*.yaml  those that held before, up to the step in the name
    versions.json        packages, Python, git revision, machine, date
    metrics.jsonl        one JSON object a line: what was measured at which step
    tensorboard/         the same for TensorBoard
    checkpoints/         see latentpt.run.checkpoints
    state.json           whether it is being trained, by which process, or how the training ended
    summary.json         written when the training has reached its end
    skipped/             samples and norms of steps whose gradient was not finite, see latentpt.training.evidence
    rewinds.json         how often the training has gone back, see latentpt.training.rewind
    profile/             a trace of some steps
    report.html          the run on one page, with report.png; texts.json has what it wrote
    STOP                 create it to have the training saved and stopped
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from latentpt.config import Section, load_config, to_yaml
from latentpt.files import write_text

PACKAGES = (
    "torch",
    "deepspeed",
    "triton",
    "numpy",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "flash-attn",
)


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        """What the run was made with."""
        return self.path / "versions.json"

    @property
    def metrics(self) -> Path:
        """Measurements, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """The outcome; exists once the training has reached its end."""
        return self.path / "summary.json"

    @property
    def state(self) -> Path:
        """What the training said last of itself: that it runs, or how it has ended."""
        return self.path / "state.json"

    @property
    def skipped(self) -> Path:
        """Folder of what is kept of steps whose gradient was not finite."""
        return self.path / "skipped"

    @property
    def rewinds(self) -> Path:
        """The times that the training has gone back to before a spike."""
        return self.path / "rewinds.json"

    @property
    def profile(self) -> Path:
        """Folder of traces."""
        return self.path / "profile"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def picture(self) -> Path:
        """The curves of the page."""
        return self.path / "report.png"

    @property
    def texts(self) -> Path:
        """What the model wrote for the page."""
        return self.path / "texts.json"

    @property
    def evaluation(self) -> Path:
        """Folder of what launch/eval.py measured."""
        return self.path / "evaluation"

    @property
    def stop_file(self) -> Path:
        """Asks a running training to save and stop."""
        return self.path / "STOP"

    def earlier_config(self, step: int) -> Path:
        """The configuration that held until `step`, where another one followed."""
        return self.path / f"config-until-{step:08d}.yaml"

    def describe_run(self, config: Section, device: str, step: int = 0, processes: int = 1) -> None:
        """Write config.yaml and versions.json; a configuration that changes after `step` steps is kept beside them."""
        if step and self.config.exists() and self.config.read_text(encoding="utf-8") != to_yaml(config):
            write_text(self.earlier_config(step), self.config.read_text(encoding="utf-8"))
        write_text(self.config, to_yaml(config))
        made = versions() | {"device": device, "processes": processes}
        write_text(self.versions, json.dumps(made, indent=1) + "\n")


class FolderConfig(Section):
    """A configuration whose training keeps everything in one folder."""

    output: str = ""
    """Folder of the run; empty means runs/ and the name of the configuration file."""

    @property
    def folder(self) -> RunFolder:
        """Where the run keeps everything."""
        return RunFolder(Path(self.output))


F = TypeVar("F", bound=FolderConfig)


def load_folder_config(kind: type[F], path: str | Path, overrides: Iterable[str] = ()) -> F:
    """Load a configuration and name its folder; raises ConfigError, see `latentpt.config.load_config`."""
    return with_folder(load_config(kind, path, overrides), path)


def with_folder(config: F, path: str | Path) -> F:
    """A configuration from the file at `path`, which names its folder unless it does so itself."""
    return config if config.output else config.model_copy(update={"output": f"runs/{Path(path).stem}"})


def versions() -> dict[str, Any]:
    """Package versions, Python, git revision of the code, the command line, the machine and the time."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "packages": installed,
        "python": platform.python_version(),
        "git": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
        "command": sys.argv,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def machine() -> dict[str, Any]:
    """Processor, the cores that this process may use, and memory in GiB."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": next(names, platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "system": platform.platform(),
    }


def _git(*arguments: str) -> str | None:
    """Output of git about the code that runs; None where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order; a last line that a crash cut short is left out.

    A damaged line is left out too and named on stderr: what is measured again is worth less than going on.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = json.loads(line)
            damaged = not isinstance(values, dict) or not isinstance(values.get("step"), int)
        except ValueError:
            damaged = True
        if damaged:
            print(f"warning: line {number} of {path} is damaged and left out", file=sys.stderr, flush=True)
        else:
            found.append(values)
    return found


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines beyond `step`, so that a resumed training writes each step once."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
