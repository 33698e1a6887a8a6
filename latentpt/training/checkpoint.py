"""Checkpoints: the whole training state on disk, independent of the number of ranks and of the ZeRO stage.

    checkpoints/step-00001000/
        weights-00000-of-00002.safetensors    every parameter once, fp32, divided among the ranks that wrote
        moments-00000-of-00002.safetensors    Adam's exp_avg.NAME and exp_avg_sq.NAME, fp32
        meta.json                             progress, shapes, the resolved configuration
        COMMIT                                sizes of the files; written last: without it the folder is no checkpoint

DeepSpeed's own format is tied to the number of ranks and pickled, and its universal format resumes ZeRO-3 with wrong
hyperparameters when there are several parameter groups; see `engine`. Here every parameter is assembled on all ranks,
one at a time, and one of them writes it, so a resume on the same layout continues bit by bit, and on any other within
rounding. There is no random state to keep: everything random is a function of (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from latentpt.config import ConfigError
from latentpt.files import write_text
from latentpt.training.engine import MOMENTS, Engine

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


def save(folder: Path, engine: Engine, progress: Progress, config: Mapping[str, Any]) -> Path:
    """Write a checkpoint of the current step under `folder`; collective. Returns its path."""
    final = folder / f"step-{progress.step:08d}"
    side = final.with_suffix(".tmp")
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(parents=True)
    dist.barrier()
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for index, name in enumerate(engine.names):
        tensors = engine.gather(name)
        if index % world == rank:
            weights[name] = tensors["weight"].cpu().contiguous()
            moments |= {f"{key}.{name}": tensors[key].cpu().contiguous() for key in MOMENTS}
    part = f"{rank:05d}-of-{world:05d}.safetensors"
    for kind, content in (("weights", weights), ("moments", moments)):
        save_file(content, side / f"{kind}-{part}")
        _sync(side / f"{kind}-{part}")
    dist.barrier()
    if rank == 0:
        meta = {
            "progress": asdict(progress),
            "updates": engine.updates,
            "shapes": {name: list(shape) for name, shape in engine.shapes.items()},
            "layout": {"ranks": world, "zero_stage": engine.zero.stage, "precision": engine.precision},
            "config": dict(config),
        }
        write_text(side / "meta.json", json.dumps(meta, indent=1) + "\n")
        if final.exists():
            _remove(final)
        side.rename(final)
        sizes = {path.name: path.stat().st_size for path in sorted(final.iterdir())}
        write_text(final / MARK, json.dumps(sizes, indent=1) + "\n")
        _sync(folder)
    dist.barrier()
    return final


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


def load(path: Path, engine: Engine) -> Progress:
    """Restore the state that `save` wrote, under any number of ranks and any ZeRO stage; collective.

    Raises:
        CheckpointError: a damaged file, or a checkpoint of another model.
    """
    meta = read_meta(path)
    check_shapes(path, meta["shapes"], engine.shapes)

    def states() -> Iterator[tuple[str, dict[str, Tensor]]]:
        with _Tensors(path, "weights") as weights, _Tensors(path, "moments") as moments:
            for name in engine.names:
                yield name, {"weight": weights[name], **{key: moments[f"{key}.{name}"] for key in MOMENTS}}

    engine.scatter(states(), meta["updates"])
    return Progress(**meta["progress"])


def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint into a model of one process; raises CheckpointError as `load` does."""
    parameters = dict(model.named_parameters())
    check_shapes(path, read_meta(path)["shapes"], {name: tuple(p.shape) for name, p in parameters.items()})
    with _Tensors(path, "weights") as weights, torch.no_grad():
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


def prune(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove checkpoints beyond the latest `keep_last`, except those at multiples of `keep_every`; one rank calls it."""
    for path in committed(folder)[:-keep_last]:
        step = step_of(path)
        if keep_every is None or step % keep_every:
            _remove(path)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed save or prune has left behind; one rank calls it, before training."""
    for path in folder.glob("step-*"):
        if not (path / MARK).exists():
            shutil.rmtree(path)


class _Tensors:
    """The tensors of one kind by name, wherever the writing ranks have put them; read when asked for."""

    def __init__(self, path: Path, kind: str) -> None:
        self._paths = sorted(path.glob(f"{kind}-*.safetensors"))
        self._files = ExitStack()
        self._holder: dict[str, Any] = {}

    def __enter__(self) -> _Tensors:
        for path in self._paths:
            file = self._files.enter_context(safe_open(path, framework="pt"))
            self._holder |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._holder[name].get_tensor(name)
        return tensor


def _remove(path: Path) -> None:
    """Remove a checkpoint, the mark first: a removal cut short leaves no folder that looks like one."""
    (path / MARK).unlink(missing_ok=True)
    shutil.rmtree(path)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
