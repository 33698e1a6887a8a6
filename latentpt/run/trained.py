"""The model that a run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentpt.config import ConfigError, load_config
from latentpt.run.config import RunConfig
from latentpt.run.folder import RunFolder

if TYPE_CHECKING:
    from latentpt.thoughts.model import LanguageModel

# torch takes seconds to import, so what needs it is imported inside the functions.


def checkpoint_step(run_dir: str | Path, step: int | None = None) -> int:
    """The step of the checkpoint that `load_model` reads."""
    from latentpt.run import checkpoints

    return checkpoints.step_of(checkpoints.find(RunFolder(Path(run_dir)).checkpoints, step))


def load_model(run_dir: str | Path, step: int | None = None) -> tuple[LanguageModel, RunConfig]:
    """The model of a run at a checkpoint (the latest, or that of `step`), fp32 on the CPU, in evaluation mode.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: no such checkpoint, a damaged one, or one of another model.
    """
    from latentpt.run import checkpoints
    from latentpt.thoughts.model import LanguageModel

    folder = RunFolder(Path(run_dir))
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no {folder.config.name}")
    config = load_config(RunConfig, folder.config)
    path = checkpoints.find(folder.checkpoints, step)
    model = LanguageModel(config.model, config.thoughts, config.training.attention)
    checkpoints.load_weights(path, model)
    return model.eval(), config
