"""Checkpoints as they lie on the disk, read without an engine.

    checkpoints/step-00001000/
        weights-00000-of-00002.safetensors    every parameter once, fp32, divided among the ranks that wrote
        moments-00000-of-00002.safetensors    Adam's exp_avg.NAME and exp_avg_sq.NAME, fp32
        meta.json                             progress, shapes, the resolved configuration
        COMMIT                                sizes of the files; written last: without it the folder is no checkpoint

`latentpt.training.checkpoint` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from latentpt.config import ConfigError

MARK = "COMMIT"


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used, with its path and the reason."""


@dataclass
class Progress:
    """How far a training has come; together with the tensors it is the whole state."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    samples: int = 0
    """Samples read by all ranks together: the whole state of the data loader."""
    tokens: int = 0
    """Tokens trained on."""
    training_flops: float = 0.0
    """Counted floating point operations of forward and backward so far."""
    seconds: float = 0.0
    """Wall time of the training steps, evaluation and checkpoints excluded, over all resumes."""
    skipped: int = 0
    """Steps skipped for a non-finite gradient."""
    skipped_in_a_row: int = 0
    """Of these, the ones since the last applied step."""
    refinements: int | None = None
    """Refinements of the last step where they adapt."""
    residuals: list[list[float]] = field(default_factory=list)
    """Measured residuals that have not decided on refinements yet, see `adaptive`."""


def committed(folder: Path) -> list[Path]:
    """Finished checkpoints under `folder`, oldest first."""
    return sorted(mark.parent for mark in folder.glob(f"step-*/{MARK}"))


def step_of(path: Path) -> int:
    """Steps that had been trained when a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def find(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of `step`, or the latest; raises CheckpointError naming the nearest step there is."""
    paths = committed(folder)
    if not paths:
        raise CheckpointError(f"{folder} holds no finished checkpoint")
    if step is None:
        return paths[-1]
    steps = {step_of(path): path for path in paths}
    if step not in steps:
        nearest = min(steps, key=lambda other: abs(other - step))
        raise CheckpointError(f"{folder} holds no checkpoint of step {step}; the nearest is step {nearest}")
    return steps[step]


def read_meta(path: Path) -> dict[str, Any]:
    """Progress, shapes and configuration of a checkpoint whose files are all complete."""
    try:
        sizes = json.loads((path / MARK).read_text(encoding="utf-8"))
        for name, size in sizes.items():
            found = (path / name).stat().st_size
            if found != size:
                raise CheckpointError(f"{path / name} is damaged: it has {found} bytes instead of {size}")
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        return meta
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def read_progress(path: Path) -> Progress:
    """How far the training of a checkpoint had come."""
    return Progress(**read_meta(path)["progress"])


def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint into a model of one process; raises CheckpointError as `load` does."""
    parameters = dict(model.named_parameters())
    check_shapes(path, read_meta(path)["shapes"], {name: tuple(p.shape) for name, p in parameters.items()})
    with Tensors(path, "weights") as weights, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def check_shapes(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose parameters are not those of the model, naming the first difference."""
    for name in [*here, *(name for name in there if name not in here)]:
        left, right = there.get(name), here.get(name)
        if left is None or right is None:
            only = "this model" if left is None else "the checkpoint"
            raise CheckpointError(
                f"{path} is a checkpoint of another model: only {only} has a parameter {name}"
            )
        if tuple(left) != tuple(right):
            raise CheckpointError(
                f"{path} is a checkpoint of another model: {name} is {tuple(left)} there and {tuple(right)} here"
            )


class Tensors:
    """The tensors of one kind by name, wherever the writing ranks have put them; read when asked for."""

    def __init__(self, path: Path, kind: str) -> None:
        self._paths = sorted(path.glob(f"{kind}-*.safetensors"))
        self._files = ExitStack()
        self._holder: dict[str, Any] = {}

    def __enter__(self) -> Tensors:
        for path in self._paths:
            file = self._files.enter_context(safe_open(path, framework="pt"))
            self._holder |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._holder[name].get_tensor(name)
        return tensor
