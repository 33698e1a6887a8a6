"""Where a training starts: anew, or from a checkpoint in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from latentpt.config import ConfigError, differences
from latentpt.run import RunConfig, checkpoints, cut_metrics
from latentpt.training import checkpoint

Start = Literal["auto", "resume", "fresh"]
"""auto: from the latest checkpoint if there is one; resume: there must be one; fresh: anew, setting the folder aside."""

# A resumed training must go on with these as they were, or it would not be the same training.
FIXED = ("seed", "model.", "data.sequence_length")


def find_origin(config: RunConfig, start: Start) -> Path | None:
    """The checkpoint from which the training continues, None for a new one; raises if `start` cannot be met."""
    folder = config.folder
    saved = checkpoints.committed(folder.checkpoints)
    if start == "resume" and not saved:
        raise ConfigError(
            f"{folder.path} holds no checkpoint to resume from; leave --resume out to start a training"
        )
    if start == "fresh" or not saved:
        return None
    for key, old, new in changes(config, saved[-1]):
        if key.startswith(FIXED):
            raise ConfigError(
                f"{saved[-1]} is a checkpoint of another training: {key} is {old} there and {new} here; "
                "choose another output folder, or set the old one aside with --fresh"
            )
    return saved[-1]


def changes(config: RunConfig, origin: Path) -> list[tuple[str, Any, Any]]:
    """Keys of the configuration that differ from those of a checkpoint, with its value and the new one."""
    before = checkpoints.read_meta(origin).config
    return list(differences(before, config.model_dump(mode="json")))


def prepare_folder(config: RunConfig, origin: Path | None, start: Start, device: torch.device) -> None:
    """Make the run's folder ready for a training from `origin`; one rank calls it."""
    folder = config.folder
    if start == "fresh" and folder.path.exists():
        number = 1
        while (aside := folder.path.with_name(f"{folder.path.name}.old-{number}")).exists():
            number += 1
        folder.path.rename(aside)
    if origin is not None:
        for key, old, new in changes(config, origin):
            print(f"note: {key} was {old} and is {new} from here on", flush=True)
    checkpoint.remove_unfinished(folder.checkpoints)
    cut_metrics(folder.metrics, checkpoints.step_of(origin) if origin is not None else 0)
    folder.stop_file.unlink(missing_ok=True)
    folder.summary.unlink(missing_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    folder.describe_run(config, name)
