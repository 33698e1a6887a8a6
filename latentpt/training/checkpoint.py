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
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from latentpt.files import write_text
from latentpt.run.checkpoints import (
    MARK,
    META,
    NAME,
    FileRecord,
    Meta,
    Progress,
    Tensors,
    check_shapes,
    committed,
    file_record,
    read_meta,
    step_of,
)
from latentpt.training.engine import MOMENTS, Engine

WRITTEN, REMOVED = ".tmp", ".removed"
"""What the name of a checkpoint's folder ends with while it is being written, or removed."""


def save(folder: Path, engine: Engine, progress: Progress, config: Mapping[str, Any]) -> Path:
    """Write a checkpoint of the current step under `folder`; collective. Returns its path."""
    final = folder / f"step-{progress.step:08d}"
    side = final.with_name(final.name + WRITTEN)
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        _remove_folder(side)
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
    records: dict[str, FileRecord] = {}
    for kind, content in (("weights", weights), ("moments", moments)):
        file = side / f"{kind}-{part}"
        save_file(content, file)
        file.chmod(side.stat().st_mode & 0o666)  # safetensors makes it readable by its owner alone
        _sync(file)
        records[file.name] = file_record(file)
    of_all: list[Any] = [None] * world
    dist.all_gather_object(of_all, records)  # also waits for all files
    if rank == 0:
        meta = Meta(
            progress=progress,
            updates=engine.updates,
            shapes=engine.shapes,
            layout={"ranks": world, "zero_stage": engine.zero.stage, "precision": engine.precision},
            config=dict(config),
        )
        commit(side, final, meta, {name: record for part in of_all for name, record in part.items()})
    dist.barrier()
    return final


def commit(side: Path, final: Path, meta: Meta, records: Mapping[str, FileRecord]) -> None:
    """Complete the folder `side`, whose tensor files are `records`, and give it its name: from then on it is there."""
    write_text(side / META, meta.model_dump_json(indent=1) + "\n")
    marked = {**records, META: file_record(side / META)}
    mark = {name: record.model_dump() for name, record in sorted(marked.items())}
    write_text(side / MARK, json.dumps(mark, indent=1) + "\n")
    _sync(side)
    if final.exists():
        _remove(final)
    side.rename(final)
    _sync(final.parent)


def load(path: Path, engine: Engine) -> Progress:
    """Restore the state that `save` wrote, under any number of ranks and any ZeRO stage; collective.

    Raises:
        CheckpointError: a damaged file (whoever chooses a checkpoint verifies it), or a checkpoint of another model.
    """
    meta = read_meta(path)
    check_shapes(path, meta.shapes, engine.shapes)

    def states() -> Iterator[tuple[str, dict[str, Tensor]]]:
        with Tensors(path, "weights") as weights, Tensors(path, "moments") as moments:
            for name, shape in engine.shapes.items():
                adam = {key: moments.take(f"{key}.{name}", shape) for key in MOMENTS}
                yield name, {"weight": weights.take(name, shape), **adam}

    engine.scatter(states(), meta.updates)
    return meta.progress


def prune(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove checkpoints beyond the latest `keep_last`, except those at multiples of `keep_every`; one rank calls it.

    One that cannot be removed is named on stderr and stays.
    """
    for path in committed(folder)[:-keep_last]:
        step = step_of(path)
        if keep_every is None or step % keep_every:
            _remove(path)


def set_aside_after(origin: Path) -> None:
    """Rename the checkpoints after the one from which a training continues, which are damaged; one rank calls it.

    Otherwise they would count as the latest, and intact ones be pruned in their favour.
    """
    for path in committed(origin.parent):
        if step_of(path) > step_of(origin):
            path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed save or removal of ours has left behind; one rank calls it, before training."""
    for path in folder.glob("step-*"):
        if path.suffix in (WRITTEN, REMOVED) and NAME.fullmatch(path.stem):
            _remove_folder(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; it loses its name first, so a removal cut short leaves nothing that looks like one."""
    aside = path.with_name(path.name + REMOVED)
    _remove_folder(aside)
    try:
        path.rename(aside)
    except OSError as error:
        print(f"warning: {path} cannot be removed and stays ({error})", file=sys.stderr)
        return
    _remove_folder(aside)


def _remove_folder(path: Path) -> None:
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        print(f"warning: {path} cannot be removed and stays ({error})", file=sys.stderr)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
