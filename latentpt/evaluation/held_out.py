"""Loss on held-out shards, source by source: nats per token, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.data.errors import DataError
from latentpt.data.manifest import read_manifest
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.results import Figures
from latentpt.evaluation.scoring import Forward
from latentpt.intervals import Mean, ratio_of
from latentpt.thoughts.measure import sample_sums
from latentpt.thoughts.model import LanguageModel


@dataclass(frozen=True)
class HeldOut:
    """What a model loses on one source."""

    loss: Mean
    """Nats per token, over samples."""
    tokens: int
    """Targets measured."""
    thoughts: float
    """Average number of thoughts of a token."""
    bytes_per_token: float | None
    """UTF-8 bytes of text a token of the source stands for on average; None where the manifest does not know."""

    @property
    def figures(self) -> Figures:
        """loss, perplexity and, where bytes are known, bits_per_byte."""
        perplexity = math.exp(min(self.loss.value, 700.0))
        scales = {"loss": 1.0, "perplexity": perplexity}  # d metric / d loss
        values = {"loss": self.loss.value, "perplexity": perplexity, "tokens": float(self.tokens)}
        values["thoughts"] = self.thoughts
        if self.bytes_per_token:
            scales["bits_per_byte"] = 1 / math.log(2) / self.bytes_per_token
            values["bits_per_byte"] = self.loss.value * scales["bits_per_byte"]
        error = self.loss.error
        errors = {} if error is None else {metric: error * scale for metric, scale in scales.items()}
        return Figures(values, errors, self.loss.items)


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
    """Loss over `limit` samples of `length` tokens (None: all), evenly spread over a shard folder, batch by batch.

    `mask_documents` keeps the documents in a sample apart. Batches whose answer is kept are not measured again. Raises
    DataError for a folder that cannot be read.
    """
    dataset = TokenDataset(source, length)
    end = dataset.eod_id if mask_documents else None
    nats: list[float] = []
    tokens: list[float] = []
    thoughts: list[float] = []
    total = min(limit or dataset.num_samples, dataset.num_samples)
    progress = tqdm(
        total=total, desc=f"{Path(source).name}, {forward}", unit="sample", leave=False, disable=None
    )
    for number, batch in enumerate(validation_batches(dataset, batch_size, limit)):
        key = answers.key(
            "samples and thoughts", str(source), length, forward, end, number, _fingerprint(batch)
        )
        if key not in answers:
            sums = sample_sums(model, batch, forward == "exact", end)
            answers.add([(key, torch.stack([sums.nats, sums.tokens, sums.thoughts]).tolist())])
        found, counts, thought = answers[key]
        nats, tokens, thoughts = nats + found, tokens + counts, thoughts + thought
        progress.update(len(batch))
    progress.close()
    return HeldOut(
        ratio_of(nats, tokens), int(sum(tokens)), sum(thoughts) / sum(tokens), bytes_per_token(Path(source))
    )


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
