"""A run: the configuration of one training and the folder that holds all of it.

runs/NAME/
    config.yaml          the resolved configuration
    versions.json        packages, Python, git revision, device
    metrics.jsonl        one JSON object a line: what was measured at which step
    tensorboard/         the same for TensorBoard
    checkpoints/         see latentpt.training.checkpoint
    summary.json         written when the training has reached its end
    STOP                 create it to have the training saved and stopped
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from latentpt.config import ConfigError, Section, load_config, to_yaml
from latentpt.data.config import DataConfig
from latentpt.files import write_text
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.training.config import (
    CheckpointConfig,
    MonitorConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    ValidationConfig,
    ZeroConfig,
)

if TYPE_CHECKING:
    from latentpt.thoughts.model import LanguageModel

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


class RunConfig(Section):
    """Everything that decides a training."""

    output: str = ""
    """Folder of the run; empty means runs/ and the name of the configuration file."""
    seed: int = 0
    """Decides initial weights, order of samples and drawn refinements, each as a function of (seed, step)."""
    model: ModelConfig = ModelConfig()
    """The decoder."""
    thoughts: ThoughtsConfig = ThoughtsConfig()
    """What is thought before every token."""
    data: DataConfig = DataConfig()
    """What is read."""
    training: TrainingConfig
    """How long and how much at once."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the training."""
    zero: ZeroConfig = ZeroConfig()
    """What DeepSpeed divides among ranks."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    validation: ValidationConfig = ValidationConfig()
    """When held-out loss is measured."""
    monitor: MonitorConfig = MonitorConfig()
    """What is written down."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        length, limit = self.data.sequence_length, self.model.max_positions
        if length > limit:
            raise ValueError(
                f"data.sequence_length = {length} exceeds model.max_positions = {limit}; "
                f"the nearest value that fits is {limit}"
            )
        if self.training.compile and self.zero.stage == 3:
            raise ValueError(
                "training.compile does not work with zero.stage = 3; the nearest stage that does is 2"
            )
        self.training.global_batch(length)  # refuses a batch that holds no whole number of samples
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.training.total_steps(self.data.sequence_length)

    @property
    def folder(self) -> RunFolder:
        """Where the run keeps everything."""
        return RunFolder(Path(self.output))


def load_run_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Load a run's configuration; raises ConfigError, see `latentpt.config.load_config`."""
    config = load_config(RunConfig, path, overrides)
    return config if config.output else config.model_copy(update={"output": f"runs/{Path(path).stem}"})


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
    def stop_file(self) -> Path:
        """Asks a running training to save and stop."""
        return self.path / "STOP"

    def describe_run(self, config: RunConfig, device: str) -> None:
        """Write config.yaml and versions.json."""
        write_text(self.config, to_yaml(config))
        write_text(self.versions, json.dumps(versions() | {"device": device}, indent=1) + "\n")


def versions() -> dict[str, Any]:
    """Package versions, Python, git revision of the code and the command line."""
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
    }


def _git(*arguments: str) -> str | None:
    """Output of git about the code that runs; None where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order; a last line that a crash cut short is left out."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines beyond `step`, so that a resumed training writes each step once."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def checkpoint_step(run_dir: str | Path, step: int | None = None) -> int:
    """The step of the checkpoint that `load_model` reads."""
    from latentpt.training import checkpoint

    return checkpoint.step_of(checkpoint.find(RunFolder(Path(run_dir)).checkpoints, step))


def load_model(run_dir: str | Path, step: int | None = None) -> tuple[LanguageModel, RunConfig]:
    """The model of a run at a checkpoint (the latest, or that of `step`), fp32 on the CPU, in evaluation mode.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: no such checkpoint, a damaged one, or one of another model.
    """
    from latentpt.thoughts.model import LanguageModel
    from latentpt.training import checkpoint

    folder = RunFolder(Path(run_dir))
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no {folder.config.name}")
    config = load_config(RunConfig, folder.config)
    path = checkpoint.find(folder.checkpoints, step)
    model = LanguageModel(config.model, config.thoughts, config.training.attention)
    checkpoint.load_weights(path, model)
    return model.eval(), config
