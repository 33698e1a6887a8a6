"""Configuration of a run: the sections of all rooms together."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from latentpt.data.config import DataConfig
from latentpt.modeling.config import ModelConfig
from latentpt.run.folder import FolderConfig
from latentpt.run.sections import (
    AverageConfig,
    CheckpointConfig,
    LearningRateConfig,
    MonitorConfig,
    OptimizerConfig,
    TrainingConfig,
    ValidationConfig,
    ZeroConfig,
    check_recomputation,
)
from latentpt.thoughts.config import ThoughtsConfig


class RunConfig(FolderConfig):
    """Everything that decides a training."""

    renamed: ClassVar[dict[str, str]] = {"schedule": "learning_rate"}

    seed: int = 0
    """Decides initial weights, order of samples and drawn refinements, each as a function of (seed, step)."""
    model: ModelConfig = ModelConfig()
    """The decoder."""
    thoughts: ThoughtsConfig = ThoughtsConfig()
    """What is thought before every token."""
    data: DataConfig = DataConfig()
    """What is read."""
    training: TrainingConfig
    """How long and how much at once."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What updates the parameters."""
    learning_rate: LearningRateConfig = LearningRateConfig()
    """Learning rate over the training."""
    average: AverageConfig | None = None
    """Averaging of late weights; null means none."""
    zero: ZeroConfig = ZeroConfig()
    """What DeepSpeed divides among ranks."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    validation: ValidationConfig = ValidationConfig()
    """When held-out loss is measured."""
    monitor: MonitorConfig = MonitorConfig()
    """What is written down."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        length, limit = self.data.sequence_length, self.model.max_positions
        if length > limit:
            raise ValueError(
                f"data.sequence_length = {length} exceeds model.max_positions = {limit}; "
                f"the nearest value that fits is {limit}"
            )
        if self.training.precision == "fp16" and self.zero.stage == 0:
            raise ValueError("training.precision = fp16 needs zero.stage 1, 2 or 3; the nearest is 1")
        if self.training.compile and self.zero.stage == 3:
            raise ValueError(
                "training.compile does not work with zero.stage = 3; the nearest stage that does is 2"
            )
        check_recomputation(self.training.checkpoint_activations, self.zero.stage)
        self.training.global_batch(length)  # refuses a batch that holds no whole number of samples
        if self.average is not None and self.average.begin >= self.steps:
            raise ValueError(
                f"average.begin = {self.average.begin:g} is not reached in a training of {self.steps} steps; "
                "below 1 it is a fraction of it"
            )
        warmup, decay = self.learning_rate.lengths(self.steps)
        if warmup + decay > self.steps:
            raise ValueError(
                f"a warm-up of {warmup} and a decay of {decay} steps do not fit into a training of {self.steps} steps; "
                f"learning_rate.warmup and learning_rate.decay below 1 are fractions of it"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.training.total_steps(self.data.sequence_length)
