"""Writing checkpoints: the whole training state, independent of the number of ranks and of the ZeRO stage.

DeepSpeed's own format is tied to the number of ranks and pickled, and its universal format resumes ZeRO-3 with wrong
hyperparameters when there are several parameter groups; see `engine`. Here every parameter is assembled on all ranks,
one at a time, and one of them writes it (`latentpt.run.checkpoints` has the layout), so a resume on the same layout
continues bit by bit, and on any other within rounding. There is no random state to keep: everything random is a function
of (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from latentpt.files import write_text
from latentpt.run.checkpoints import MARK, Progress, Tensors, check_shapes, committed, read_meta, step_of
from latentpt.training.engine import MOMENTS, Engine


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


def load(path: Path, engine: Engine) -> Progress:
    """Restore the state that `save` wrote, under any number of ranks and any ZeRO stage; collective.

    Raises:
        CheckpointError: a damaged file, or a checkpoint of another model.
    """
    meta = read_meta(path)
    check_shapes(path, meta["shapes"], engine.shapes)

    def states() -> Iterator[tuple[str, dict[str, Tensor]]]:
        with Tensors(path, "weights") as weights, Tensors(path, "moments") as moments:
            for name in engine.names:
                yield name, {"weight": weights[name], **{key: moments[f"{key}.{name}"] for key in MOMENTS}}

    engine.scatter(states(), meta["updates"])
    return Progress(**meta["progress"])


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
