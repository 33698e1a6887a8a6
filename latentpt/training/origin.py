"""Where a training starts: anew, or from a checkpoint in its folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from latentpt.config import ConfigError, build, differences
from latentpt.data.identity import check_identity
from latentpt.files import LOCK, exclusive
from latentpt.run import checkpoints, cut_metrics
from latentpt.run.command import Start
from latentpt.run.folder import FolderConfig
from latentpt.training import checkpoint

T = TypeVar("T")


@dataclass
class Claim:
    """A run's folder in the hands of one training: looked at, not touched until `make_ready`."""

    config: FolderConfig
    start: Start
    origin: Path | None
    """The checkpoint from which the training continues, None for a new one."""
    data: dict[str, str]
    """What the training reads now, see `latentpt.data.identity`."""
    there: bool
    held: ExitStack

    def make_ready(self, device: torch.device) -> None:
        """Write what a training from `origin` begins with, now that there is nothing left to refuse; collective."""
        folder = self.config.folder.path
        dist.barrier()  # every rank has seen the folder as it was
        if not self.there:
            hold(folder, self.held)
        if dist.get_rank() == 0:
            prepare_folder(self.config, self.origin, self.start, device)
        dist.barrier()
        if self.there and self.start.kind == "fresh":  # the old folder's lock went with it
            self.held.close()
            hold(folder, self.held)


@contextmanager
def claimed(
    config: FolderConfig, start: Start, fixed: Sequence[str], data: dict[str, str]
) -> Iterator[Claim]:
    """Keep a run's folder for this training while the block runs; collective.

    Raises ConfigError, on every rank, where ranks were started differently, another training is in the folder, or for what
    `find_origin` refuses.
    """
    check_alike(config)
    folder = config.folder.path
    with ExitStack() as held:
        there = from_rank_0(folder.is_dir())
        if there:
            hold(folder, held)
        yield Claim(config, start, find_origin(config, start, fixed, data), data, there, held)


def find_origin(
    config: FolderConfig, start: Start, fixed: Sequence[str], data: Mapping[str, str]
) -> Path | None:
    """The checkpoint from which the training continues, None for a new one; collective.

    One rank looks for it, since another may see a stale listing of a shared folder, and all together verify its files. A
    damaged one is named on stderr and the one before it taken. `fixed` are beginnings of keys that must be as they were, or
    it would not be the same training; `data` is what the training reads now, see `latentpt.data.identity`.

    Raises:
        ConfigError: `start` cannot be met, no checkpoint is intact, or the one there is belongs to another training.
        DataError: the training was begun with other data.
    """
    folder = config.folder
    saved = from_rank_0(checkpoints.committed(folder.checkpoints))
    if start.kind == "resume" and not saved:
        raise ConfigError(
            f"{folder.path} holds no checkpoint to resume from; leave --resume out to start a training"
        )
    if start.kind == "fresh":
        return None
    if not saved and start.step is None:
        refuse_unfinished(folder.checkpoints)
        return None
    if start.step is not None:
        saved = [checkpoints.choose(saved, folder.checkpoints, start.step)]
    origin = newest_intact(saved)
    for key, old, new in changes(config, origin):
        if key.startswith(tuple(fixed)):
            raise ConfigError(
                f"{origin} is a checkpoint of another training: {key} is {old} there and {new} here; "
                "choose another output folder, or set the old one aside with --fresh"
            )
    begun_with = checkpoints.read_meta(origin).progress.data
    if begun_with and not start.other_data:
        check_identity(begun_with, data)
    return origin


def refuse_unfinished(folder: Path) -> None:
    """Refuse to begin anew where checkpoints lie of which none is finished; collective."""
    lying = [
        path for path in folder.glob("step-*") if path.suffix not in (checkpoint.WRITTEN, checkpoint.REMOVED)
    ]
    if lying := from_rank_0(lying):
        raise ConfigError(
            f"{folder} holds {lying[0].name}, which lacks the mark of a finished checkpoint, and no finished one; "
            "--fresh sets the folder aside and begins anew"
        )


def newest_intact(saved: Sequence[Path]) -> Path:
    """The last of the checkpoints whose files are what was written; raises CheckpointError if none is; collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    problem = ""
    for path in reversed(saved):
        problem = ""
        try:
            checkpoints.read_meta(path)
            checkpoints.verify(path, share=slice(rank, None, world))
        except checkpoints.CheckpointError as error:
            problem = str(error)
        problem = next(filter(None, from_all(problem)), "")
        if not problem:
            return path
        if rank == 0:
            print(f"warning: {problem}; the checkpoint before it is tried", file=sys.stderr, flush=True)
    raise checkpoints.CheckpointError(
        f"none of the {len(saved)} checkpoints beside {saved[-1]} is intact ({problem}); "
        "--fresh sets the folder aside and begins anew"
    )


def check_alike(config: FolderConfig) -> None:
    """Refuse ranks that were started with different configurations, on all of them alike; collective."""
    for rank, other in enumerate(from_all(config.model_dump(mode="json"))):
        if rank == 0:
            first = other
        for key, ours, theirs in differences(first, other):
            raise ConfigError(
                f"rank {rank} has {key} = {theirs} where rank 0 has {ours}; start all ranks alike"
            )


def hold(folder: Path, stack: ExitStack) -> None:
    """Keep other trainings out of a run's folder until `stack` ends; collective.

    Raises:
        ConfigError: another training is in it, on every rank.
    """
    problem = ""
    if dist.get_rank() == 0:
        try:
            stack.enter_context(exclusive(folder))
        except BlockingIOError:
            problem = (
                f"{folder} is being trained by another process; stop that one first or choose another output"
            )
        except OSError as error:
            problem = f"{folder} cannot be a run's folder ({error}); choose another output"
    if problem := from_rank_0(problem):
        raise ConfigError(problem)


def from_rank_0(value: T) -> T:
    """The value that rank 0 has."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def changes(config: Any, origin: Path) -> list[tuple[str, Any, Any]]:
    """Keys of a configuration that differ from those of a checkpoint, with its value and the new one."""
    before = checkpoints.read_meta(origin).config
    with suppress(ConfigError):  # options that are younger than the checkpoint had their defaults
        before = build(type(config), before).model_dump(mode="json")
    return list(differences(before, config.model_dump(mode="json")))


def prepare_folder(config: FolderConfig, origin: Path | None, start: Start, device: torch.device) -> None:
    """Make the run's folder ready for a training from `origin`; one rank calls it."""
    folder = config.folder
    if (
        start.kind == "fresh"
        and folder.path.exists()
        and [path.name for path in folder.path.iterdir()] != [LOCK]
    ):
        number = 1
        while (aside := folder.path.with_name(f"{folder.path.name}.old-{number}")).exists():
            number += 1
        folder.path.rename(aside)
    if origin is not None:
        for key, old, new in changes(config, origin):
            print(f"note: {key} was {old} and is {new} from here on", flush=True)
    checkpoint.remove_unfinished(folder.checkpoints)
    if origin is not None:
        checkpoint.set_aside_after(origin)
    cut_metrics(folder.metrics, checkpoints.step_of(origin) if origin is not None else 0)
    folder.stop_file.unlink(missing_ok=True)
    folder.summary.unlink(missing_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    step = checkpoints.step_of(origin) if origin is not None else 0
    folder.describe_run(config, name, step, dist.get_world_size())
