"""The data's configuration: where the shards are and how long a sample is."""

from __future__ import annotations

from pydantic import model_validator

from latentpt.config import Section


class DataConfig(Section):
    """Training and validation shards, and the length of a sample."""

    train: str | list[str] = "data/train"
    """Shard folder to train on, or several that are read as one corpus."""
    validation: str = "data/validation"
    """Shard folder with held-out documents."""
    sequence_length: int = 2048
    """Tokens L the model sees of one sample; samples hold L + 1, the last one as label."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.sequence_length < 1:
            raise ValueError(f"data.sequence_length must be at least 1, got {self.sequence_length}")
        return self
