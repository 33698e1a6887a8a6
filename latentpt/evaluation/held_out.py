"""Loss on held-out shards, source by source: nats per token, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.data.errors import DataError
from latentpt.data.manifest import read_manifest
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.scoring import Forward
from latentpt.thoughts.measure import summed_loss
from latentpt.thoughts.model import LanguageModel


@dataclass(frozen=True)
class HeldOut:
    """What a model loses on one source."""

    nats: float
    """Summed over the tokens."""
    tokens: int
    """Targets measured."""
    thoughts: float
    """Average number of thoughts of a token."""
    bytes_per_token: float | None
    """UTF-8 bytes of text a token of the source stands for on average; None where the manifest does not know."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def metrics(self) -> dict[str, float]:
        """loss, perplexity and, where bytes are known, bits_per_byte."""
        values = {
            "loss": self.loss,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "tokens": float(self.tokens),
            "thoughts": self.thoughts,
        }
        if self.bytes_per_token:
            values["bits_per_byte"] = self.loss / math.log(2) / self.bytes_per_token
        return values


def held_out_loss(
    model: LanguageModel,
    source: str | Path,
    length: int,
    batch_size: int,
    limit: int | None,
    forward: Forward,
    answers: Answers,
    mask_documents: bool = False,
) -> HeldOut:
    """Loss over `limit` samples of `length` tokens (None: all) of a shard folder, batch by batch.

    `mask_documents` keeps the documents in a sample apart. Batches whose answer is kept are not measured again. Raises
    DataError for a folder that cannot be read.
    """
    dataset = TokenDataset(source, length)
    end = dataset.eod_id if mask_documents else None
    nats, tokens, thoughts = 0.0, 0, 0.0
    for number, batch in enumerate(validation_batches(dataset, batch_size, limit)):
        key = answers.key(
            "held out and thought", str(source), length, forward, end, number, _fingerprint(batch)
        )
        if key not in answers:
            sums = summed_loss(model, [batch], forward == "exact", end)
            answers.add([(key, [sums.nats, sums.tokens, sum(sums.reached[1:])])])
        found, count, thought = answers[key]
        nats, tokens, thoughts = nats + found, tokens + int(count), thoughts + thought
    return HeldOut(nats, tokens, thoughts / tokens, bytes_per_token(Path(source)))


def bytes_per_token(folder: Path) -> float | None:
    """Bytes of text a token stands for, by the manifest of a shard folder."""
    try:
        counts = read_manifest(folder).counts
    except DataError:
        return None  # a single pair of files has no manifest
    return counts.text_bytes / counts.tokens if counts.text_bytes and counts.tokens else None


def _fingerprint(batch: Tensor) -> list[int]:
    """Shape and ends of a batch: enough to notice that the shards have changed."""
    return [*batch.shape, *batch[0, :8].tolist(), *batch[-1, -8:].tolist()]


def named_sources(validation: str | Mapping[str, str]) -> dict[str, str]:
    """A run's held-out folders by name."""
    return {"validation": validation} if isinstance(validation, str) else dict(validation)
