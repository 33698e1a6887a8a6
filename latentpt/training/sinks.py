"""Where measurements go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from latentpt.config import ConfigError
from latentpt.files import write_text
from latentpt.run import RunFolder
from latentpt.run.sections import MonitorConfig

SERVICES = ("wandb", "trackio")
POSITION = ("step", "tokens", "seconds")
"""What tells where a measurement was made, not what was measured."""


class Sink(Protocol):
    """Takes records; whatever it raises is told once and ends no training."""

    name: str

    def record(self, values: Mapping[str, Any]) -> None:
        """One line of metrics."""
        ...

    def rewind(self, step: int) -> None:
        """What was recorded after `step` is void."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record as KIND/NAME."""
    return {
        f"{values['kind']}/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float) and name not in POSITION
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """The options of a dumped configuration by dotted keys; lists and nulls as text."""
    found: dict[str, str | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str | int | float) else str(value)
    return found


class TensorBoard:
    """Events: scalars, what the model writes, and the configuration as hyperparameters of the run's last losses."""

    name = "TensorBoard"

    def __init__(self, folder: Path, done: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._open = lambda step: SummaryWriter(str(folder), purge_step=step + 1)
        self._writer = self._open(done)
        losses = {
            f"{kind}/loss": 0.0 for kind in ("train", "validation")
        }  # names of the columns beside the options
        for summary in hparams(flat(config), losses):  # add_hparams would make a folder of its own
            self._writer._get_file_writer().add_summary(summary)

    def record(self, values: Mapping[str, Any]) -> None:
        """Scalars under KIND/NAME; a text under its prompt."""
        for name, value in scalars(values).items():
            self._writer.add_scalar(name, value, values["step"])
        if values["kind"] == "text":
            text = f"{values['prompt']}**{values['text']}**"
            self._writer.add_text(f"text/{values['number']}", text, values["step"])

    def rewind(self, step: int) -> None:
        """Later events are purged by those that follow."""
        self._writer.close()
        self._writer = self._open(step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class Tracker:
    """Weights & Biases or trackio, which take the same calls.

    The run there has the name of the folder, and a resumed training goes on in it: the folder keeps the run's identity.
    Steps are a measurement like others, because the services take none that goes back, which a resume or a rewind does.
    """

    def __init__(self, module: str, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Raises ConfigError where the package is not installed."""
        self.name = module
        self._module = imported(module)
        where = self._place(folder.resolve().name, identity(folder), folder)
        self._module.init(project=project, config=flat(config), resume="allow", **where)
        if hasattr(self._module, "define_metric"):
            self._module.define_metric("step")
            self._module.define_metric("*", step_metric="step")

    def _place(self, name: str, identity: str, folder: Path) -> dict[str, str]:
        """Which run it is: trackio tells runs by their names alone."""
        if self.name == "wandb":
            return {"name": name, "id": identity, "dir": str(folder)}
        return {"name": f"{name}-{identity}"}

    def record(self, values: Mapping[str, Any]) -> None:
        """The numbers of a record, and texts as they are."""
        told: dict[str, Any] = scalars(values)
        if values["kind"] == "text":
            told = {f"text/{values['number']}": f"{values['prompt']} > {values['text']}"}
        if told:
            self._module.log(told | {name: values[name] for name in POSITION if name in values})

    def rewind(self, step: int) -> None:
        """What is there stays there; the steps are told again."""

    def close(self) -> None:
        """Wait until all has been sent."""
        self._module.finish()


def check_sinks(monitor: MonitorConfig) -> None:
    """Raise ConfigError where a package is missing that measurements shall go to."""
    for module in SERVICES:
        if getattr(monitor, module) is not None:
            imported(module)


def open_sinks(folder: RunFolder, monitor: MonitorConfig, done: int, config: Mapping[str, Any]) -> list[Sink]:
    """Those that a training of this `config` wants after `done` steps."""
    sinks: list[Sink] = []
    if monitor.tensorboard:
        sinks.append(TensorBoard(folder.tensorboard, done, config))
    for module in SERVICES:
        if (project := getattr(monitor, module)) is not None:
            sinks.append(Tracker(module, project, folder.path, config))
    return sinks


def identity(folder: Path) -> str:
    """What services know a run's folder by: drawn once and kept in it, so that a folder set aside does not go on."""
    path = folder / "tracked-as"
    if not path.is_file():
        write_text(path, f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text(encoding="utf-8").strip()


def imported(module: str) -> Any:
    """A service's package; raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"monitor.{module} needs the package {module} ({error}): pip install {module}, or set it to null"
        ) from None
