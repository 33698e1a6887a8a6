"""Writing checkpoints: the whole training state, independent of the number of ranks and of the ZeRO stage.

DeepSpeed's own format is tied to the number of ranks and pickled, and its universal format resumes ZeRO-3 with wrong
hyperparameters when there are several parameter groups; see `engine`. Here every parameter is assembled on all ranks,
one at a time, and one of them writes it (`latentpt.run.checkpoints` has the layout), so a resume on the same layout
continues bit by bit, and on any other within rounding. There is no random state to keep: everything random is a function
of (seed, step).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from latentpt.config import ConfigError
from latentpt.files import write_text
from latentpt.run.checkpoints import (
    MARK,
    META,
    NAME,
    RECORDS,
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
from latentpt.training.engine import Engine

WRITTEN, REMOVED = ".tmp", ".removed"
"""What the name of a checkpoint's folder ends with while it is being written, or removed."""


class Writer:
    """Writes checkpoints of one run while the training goes on; all ranks have one and call it alike.

    A save holds the training up until the state is copied to host memory. Each rank's thread then writes its share and a
    note of what it wrote; rank 0's thread waits for all notes and commits. The threads talk through the folder alone, which
    all ranks share, so no communication of theirs can come between those of the training. A rank that cannot write takes a
    file away, which a full disk allows. One save is under way at a time.

    Use as a context manager around the training. Where it fails, what is under way is brought to its end, for nobody may
    write into a folder that the training no longer holds. Only after errors that not all ranks have alike it is given up as
    in a process that is killed: one of them may be gone, and its note would never come.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int | None) -> None:
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._broken: BaseException | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        alike = isinstance(error, ConfigError) or (isinstance(error, Exception) and self._world == 1)
        if self._thread is not None and alike:
            self._thread.join()
            if problem := self._problem or self._broken:
                print(f"warning: {problem}; the checkpoints before it stay", file=sys.stderr, flush=True)

    def begin(self, engine: Engine, progress: Progress, config: Mapping[str, Any], prune: bool) -> str:
        """Start to write a checkpoint of the current step; collective. With `prune` those that need not be kept go then.

        Returns why the save before this one failed, on all ranks; empty if it did not.
        """
        before = self.settle()
        meta = Meta(
            progress=dataclasses.replace(progress),
            updates=engine.updates,
            averaged=engine.averaged,
            scaler=engine.scaler,
            shapes=engine.shapes,
            layout={"ranks": self._world, "zero_stage": engine.zero.stage, "precision": engine.precision},
            config=dict(config),
        )
        final = self.folder / f"step-{progress.step:08d}"
        side = final.with_name(final.name + WRITTEN)
        if self._rank == 0:
            try:
                remove_unfinished(self.folder)  # a failed save is in the way of this one
                if prune:
                    make_room(
                        self.folder,
                        (3 + engine.averaged) * 4 * sum(math.prod(shape) for shape in engine.shapes.values()),
                    )
                side.mkdir(parents=True)
                for rank in range(1, self._world):
                    (side / _pending(rank)).touch()
            except OSError as error:
                self._problem = f"{final} could not be written ({error})"
        dist.barrier()
        share = self._share(engine)
        work = functools.partial(self._work, side, final, meta, share, prune)
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()
        return before

    def settle(self) -> str:
        """Wait for the save under way, if there is one; collective. Returns why it failed, on all ranks, or nothing."""
        if self._thread is None:
            return ""
        self._thread.join()
        self._thread = None
        problems: list[str] = [""] * self._world
        dist.all_gather_object(problems, self._problem)
        broken, self._broken, self._problem = self._broken, None, ""
        if broken is not None:
            raise broken
        return next(filter(None, problems), "")

    def _share(self, engine: Engine) -> dict[str, dict[str, Tensor]]:
        """This rank's part of the weights, their average and the moments, copied to host memory."""
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        average: dict[str, Tensor] = {}
        for index, name in enumerate(engine.names):
            tensors = engine.gather(name)
            if index % self._world == self._rank:
                copies = {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
                weights[name] = copies["weight"]
                if "average" in copies:
                    average[name] = copies["average"]
                moments |= {f"{key}.{name}": copies[key] for key in engine.moments(name)}
        kinds = {"weights": weights, "moments": moments, "average": average}
        return {kind: kinds[kind] for kind in kinds if kind != "average" or engine.averaged}

    def _work(
        self, side: Path, final: Path, meta: Meta, share: dict[str, dict[str, Tensor]], prune_too: bool
    ) -> None:
        try:
            if not self._problem:
                records = write_share(side, share, f"{self._rank:05d}-of-{self._world:05d}")
                write_text(side / _note(self._rank), RECORDS.dump_json(records).decode())
                if self._rank == 0:
                    commit(side, final, meta, self._notes(side))
                    if prune_too:
                        prune(self.folder, self.keep_last, self.keep_every)
        except OSError as error:
            self._problem = f"{final} could not be written ({error})"
        except BaseException as error:  # whatever it is, it would end with this thread: `settle` raises it
            self._broken = error
        if self._rank and (self._problem or self._broken is not None):
            with contextlib.suppress(OSError):  # the folder itself is not there, and rank 0 knows
                (side / _pending(self._rank)).unlink()

    def _notes(self, side: Path) -> dict[str, FileRecord]:
        """What all ranks have written, once the last of them has; raises OSError if one could not."""
        records: dict[str, FileRecord] = {}
        for rank in range(self._world):
            note, pending = side / _note(rank), side / _pending(rank)
            while not note.exists():
                if not pending.exists():
                    raise OSError(f"rank {rank} could not write its share")
                time.sleep(0.02)
            records |= RECORDS.validate_json(note.read_bytes())
            note.unlink()
            pending.unlink(missing_ok=True)  # rank 0 has none
        return records


def write_share(side: Path, share: Mapping[str, dict[str, Tensor]], part: str) -> dict[str, FileRecord]:
    """Write one rank's tensors into `side` and bring them to the disk; returns what the mark says of the files."""
    records: dict[str, FileRecord] = {}
    for kind, content in share.items():
        file = side / f"{kind}-{part}.safetensors"
        try:
            save_file(content, file)
        except SafetensorError as error:  # which is how it reports a full disk
            raise OSError(f"{file}: {error}") from None
        file.chmod(side.stat().st_mode & 0o666)  # safetensors makes it readable by its owner alone
        _sync(file)
        records[file.name] = file_record(file)
    return records


def make_room(folder: Path, needed: int) -> None:
    """Remove all checkpoints but the latest, oldest first, while fewer than `needed` bytes are free."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in committed(folder)[:-1]:
        if shutil.disk_usage(folder).free > needed:
            return
        print(
            f"warning: the disk of {folder} is nearly full; {path.name} is removed",
            file=sys.stderr,
            flush=True,
        )
        _remove(path)


def _note(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _pending(rank: int) -> str:
    """Name of an empty file that lies there unless that rank has failed."""
    return f"rank-{rank:05d}.pending"


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
    """Restore the state that a `Writer` wrote, under any number of ranks and any ZeRO stage; collective.

    Raises:
        CheckpointError: a damaged file (whoever chooses a checkpoint verifies it), or a checkpoint of another model.
    """
    meta = read_meta(path)
    check_shapes(path, meta.shapes, engine.shapes)

    def states() -> Iterator[tuple[str, dict[str, Tensor]]]:
        with ExitStack() as stack:
            weights, moments, average = (
                stack.enter_context(Tensors(path, kind)) for kind in ("weights", "moments", "average")
            )
            for name, shape in engine.shapes.items():
                state = {key: moments.take(f"{key}.{name}", shape) for key in engine.moments(name)}
                if meta.averaged:
                    state["average"] = average.take(name, shape)
                yield name, {"weight": weights.take(name, shape), **state}

    engine.scatter(states(), meta.updates)
    engine.scaler = meta.scaler
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
    """Rename the checkpoints after the one from which a training continues; one rank calls it.

    Otherwise they would count as the latest, and intact ones be pruned in their favour.
    """
    for path in committed(origin.parent):
        if step_of(path) > step_of(origin):
            path.rename(path.with_name(f"{path.name}.set-aside-{time.time_ns()}"))


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
