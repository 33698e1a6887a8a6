"""What is measured once on a trained arm: its loss by the training forward and by exact decoding, and text it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from latentpt.compare.plan import Plan
from latentpt.config import Section
from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.evaluation.perplexity import validation_loss
from latentpt.files import write_text
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Writer, find_tokenizer
from latentpt.run import RunConfig, load_model
from latentpt.thoughts.model import LanguageModel

MICRO_BATCH = 32
SAMPLING = Sampling(temperature=0.7, top_k=50)
TEXT_TOKENS = 80
BASELINE_SAMPLES = 20_000  # a few million tokens fix the frequencies of the frequent ones


class Measured(Section):
    """Measurements of one run after training."""

    loss: float
    """Validation loss of the training forward, nats per token."""
    exact_loss: float
    """Validation loss of exact sequential decoding on the same samples, nats per token."""
    samples: int
    """Validation samples both were measured on."""
    texts: dict[str, str]
    """Prompt -> its continuation."""


def measurement_path(plan: Plan, arm: str, seed: int) -> Path:
    """Where the measurements of a run are kept."""
    return plan.comparison.folder / "measured" / f"{plan.run_name(arm, seed)}.json"


def measure(plan: Plan, arm: str, seed: int) -> Measured:
    """Measure a finished run, or read what was measured before."""
    path = measurement_path(plan, arm, seed)
    if path.is_file():
        return Measured.model_validate_json(path.read_bytes())
    model, run = load_model(plan.run_folder(arm, seed))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = TokenDataset(run.data.validation, run.data.sequence_length)
    samples = min(
        plan.comparison.evaluation_samples or run.validation.samples or dataset.num_samples,
        dataset.num_samples,
    )
    measured = Measured(
        loss=validation_loss(model, validation_batches(dataset, MICRO_BATCH, samples)),
        exact_loss=validation_loss(model, validation_batches(dataset, MICRO_BATCH, samples), exact=True),
        samples=samples,
        texts=continuations(model, run, plan.comparison.prompts),
    )
    write_text(path, json.dumps(measured.model_dump(), indent=1, ensure_ascii=False) + "\n")
    return measured


def continuations(model: LanguageModel, run: RunConfig, prompts: list[str]) -> dict[str, str]:
    """What the model writes after each prompt, sampled with one fixed seed."""
    if not prompts:
        return {}
    writer = Writer(model, find_tokenizer([run.data.validation], model))
    return dict(zip(prompts, writer.write(prompts, TEXT_TOKENS, SAMPLING), strict=True))


def unigram_loss(run: RunConfig, samples: int | None) -> float:
    """Nats per token of predicting validation tokens from their frequency in the training data alone.

    A model that learnt nothing but frequencies would have this loss; counts start at one.
    """
    length = run.data.sequence_length
    train, held_out = TokenDataset(run.data.train, length), TokenDataset(run.data.validation, length)
    counts = np.ones(run.model.vocab_size)
    for index in range(min(train.num_samples, BASELINE_SAMPLES)):
        counts += np.bincount(train.sample(index)[1:], minlength=len(counts))
    surprise = -np.log(counts / counts.sum())
    chosen = range(min(held_out.num_samples, samples or held_out.num_samples))
    return float(np.mean([surprise[held_out.sample(index)[1:]].mean() for index in chosen]))
