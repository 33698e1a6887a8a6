"""Checkpoints as they lie on the disk, read without an engine.

    checkpoints/step-00001000/
        weights-00000-of-00002.safetensors    every parameter once, fp32, divided among the ranks that wrote
        moments-00000-of-00002.safetensors    Adam's exp_avg.NAME and exp_avg_sq.NAME, or Muon's momentum.NAME, fp32
    average-00000-of-00002.safetensors    average of late weights, fp32, where there is one
        meta.json                             progress, shapes, the resolved configuration
        COMMIT                                size and sha256 of every other file; without it the folder is no checkpoint

`latentpt.training.checkpoint` writes them. Whatever else lies in the folder is not ours and is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latentpt.config import ConfigError, Section
from latentpt.run.naming import MARK, META, NAME, committed, step_of  # noqa: F401  (others look for them here)


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
    """Refinements of the coming step where they adapt."""
    watch: dict[str, float] = field(default_factory=dict)
    """What the watch over the loss knows, see `latentpt.training.guard`."""
    data: dict[str, str] = field(default_factory=dict)
    """What it is trained on, see `latentpt.data.identity`; empty where nobody said."""


class FileRecord(Section):
    """What the mark says of a file."""

    bytes: int
    """Its size."""
    sha256: str
    """Its hash."""


class Meta(Section):
    """What a checkpoint says of itself."""

    progress: Progress
    """How far the training had come."""
    updates: int
    """Steps that the optimizer had applied."""
    averaged: bool = False
    """Whether it holds an average of late weights."""
    scaler: dict[str, float] = {}
    """State of the loss scale, of a training in fp16."""
    shapes: dict[str, tuple[int, ...]]
    """Every parameter and its shape."""
    layout: dict[str, Any]
    """Ranks, ZeRO stage and precision of the training that wrote it; nothing depends on them."""
    config: dict[str, Any]
    """The resolved configuration of the run."""


RECORDS = TypeAdapter(dict[str, FileRecord])


def find(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of `step`, or the latest; raises CheckpointError naming the nearest step there is."""
    return choose(committed(folder), folder, step)


def choose(paths: Sequence[Path], folder: Path, step: int | None = None) -> Path:
    """`find` among the finished checkpoints `paths` of `folder`."""
    if not paths:
        raise CheckpointError(f"{folder} holds no finished checkpoint")
    if step is None:
        return paths[-1]
    steps = {step_of(path): path for path in paths}
    if step not in steps:
        nearest = min(steps, key=lambda other: abs(other - step))
        raise CheckpointError(f"{folder} holds no checkpoint of step {step}; the nearest is step {nearest}")
    return steps[step]


def file_record(path: Path) -> FileRecord:
    """Size and hash of a file as it is now."""
    with path.open("rb") as file:
        return FileRecord(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def identity(path: Path) -> str:
    """A name for the content of a checkpoint: the hash of its mark, which holds those of all files."""
    return file_record(path / MARK).sha256


def read_mark(path: Path) -> dict[str, FileRecord]:
    """What the mark of a checkpoint says of its files; raises CheckpointError where one is missing or of another size."""
    mark = path / MARK
    try:
        records = RECORDS.validate_json(mark.read_bytes())
        for name, record in records.items():
            if Path(name).name != name:
                raise CheckpointError(f"{mark} is damaged: {name!r} is not a file of its folder")
            found = (path / name).stat().st_size
            if found != record.bytes:
                raise CheckpointError(
                    f"{path / name} is damaged: it has {found} bytes instead of {record.bytes}"
                )
    except ValidationError as error:
        raise CheckpointError(f"{mark} is damaged: {_first(error)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if META not in records:
        raise CheckpointError(f"{mark} is damaged: it does not name {META}")
    return records


def verify(path: Path, prefix: str = "", share: slice = slice(None)) -> None:
    """Read every file of a checkpoint whose name begins with `prefix` (of these a `share`) and compare its hash.

    Raises:
        CheckpointError: a file is missing or is not the one that was written.
    """
    records = read_mark(path)
    for name in sorted(name for name in records if name.startswith(prefix))[share]:
        if file_record(path / name) != records[name]:
            raise CheckpointError(f"{path / name} is damaged: its content is not what was written")


def read_meta(path: Path) -> Meta:
    """What a checkpoint says of itself; its tensors are not read, but all files are there in their size."""
    verify(path, META)
    try:
        return Meta.model_validate_json((path / META).read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path / META} is damaged: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first problem of a file's content in a few words."""
    problem = error.errors()[0]
    return ": ".join([*map(str, problem["loc"]), problem["msg"]])


def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint, verified, into a model of one process: their average where it holds one.

    Raises:
        CheckpointError: a damaged file, or a checkpoint of another model.
    """
    parameters = dict(model.named_parameters())
    shapes = shapes_of(parameters)
    meta = read_meta(path)
    check_shapes(path, meta.shapes, shapes)
    kind = "average" if meta.averaged else "weights"
    verify(path, f"{kind}-")
    with Tensors(path, kind) as weights, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights.take(name, shapes[name]))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(
    path: Path, there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a checkpoint whose parameters are not those of the model, naming the first difference."""
    for name in [*here, *(name for name in there if name not in here)]:
        left, right = there.get(name), here.get(name)
        if left is None or right is None:
            only = "this model" if left is None else "the checkpoint"
            raise CheckpointError(
                f"{path} is a checkpoint of another model: only {only} has a parameter {name}"
            )
        if left != right:
            raise CheckpointError(
                f"{path} is a checkpoint of another model: {name} is {left} there and {right} here"
            )


class Tensors:
    """The tensors of one kind by name, wherever the writing ranks have put them; read when asked for."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._files = ExitStack()
        self._holder: dict[str, Any] = {}

    def __enter__(self) -> Tensors:
        for path in sorted(self._path.glob(f"{self._kind}-*.safetensors")):
            with self._damage():
                file = self._files.enter_context(safe_open(path, framework="pt"))
                self._holder |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of that name, which must have that shape: a copy would repeat a smaller one in silence."""
        if name not in self._holder:
            raise CheckpointError(f"{self._path} is damaged: its {self._kind} files hold no tensor {name}")
        with self._damage():
            tensor: Tensor = self._holder[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self._path} is damaged: tensor {name} of its {self._kind} files is {tuple(tensor.shape)}, not {shape}"
            )
        return tensor

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except SafetensorError as error:
            raise CheckpointError(f"a {self._kind} file of {self._path} is damaged: {error}") from None
