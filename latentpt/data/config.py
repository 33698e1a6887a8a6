"""The data's configuration: where the shards are, how sources are mixed and how long a sample is."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from pydantic import model_validator

from latentpt.config import Positive, Section


class SourceConfig(Section):
    """One source of a mixture."""

    path: str
    """Shard folder, or a folder of shard folders."""
    name: str = ""
    """Name in messages and metrics; empty means the path's last part."""
    weight: Positive | None = None
    """Share of the samples, relative to the other sources' weights."""
    epochs: Positive | None = None
    """Alternatively, how often the source is read while every other one is read its own number of epochs."""


class DataConfig(Section):
    """Training and validation shards, and the length of a sample."""

    train: str | list[str] | list[SourceConfig] = "data/train"
    """Shard folder to train on; several, read as one corpus; or sources, each with a weight or a number of epochs."""
    validation: str | dict[str, str] = "data/validation"
    """Shard folder with held-out documents, or one for each name, to have a loss for each."""
    sequence_length: Annotated[int, Ge(2), Le(2**31 - 1)] = 2048
    """Tokens L the model sees of one sample; samples hold L + 1, the last one as label."""
    mask_documents: bool = False
    """Keep the documents in a sample apart: attention stays inside a document, positions restart with it. Needs explicit
    masks, which cost memory quadratic in sequence_length."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not self.train or not self.validation:
            empty = "train" if not self.train else "validation"
            raise ValueError(f"data.{empty} names no shard folder")
        sources = [source for source in self.train if isinstance(source, SourceConfig)]
        for source in sources:
            if (source.weight is None) == (source.epochs is None):
                raise ValueError(
                    f"data.train: source {source.path!r} needs a weight or epochs, one of the two"
                )
            if (source.weight is None) != (sources[0].weight is None):
                raise ValueError("data.train: give every source a weight or every source epochs")
        return self
