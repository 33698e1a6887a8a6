"""What is measured once on a trained arm: its loss by the training forward and by exact decoding, and text it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from latentpt.compare.config import TasksConfig
from latentpt.compare.planning.plan import Plan
from latentpt.config import Section, load_config
from latentpt.data.batches import validation_batches
from latentpt.data.identity import source_identity
from latentpt.data.opening import open_training, open_validation
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.command import identity, task_data
from latentpt.evaluation.harness import make_adapter, run_tasks
from latentpt.files import write_text
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Writer, find_tokenizer
from latentpt.hub.source import data_folders
from latentpt.run import RunConfig, RunFolder, checkpoints, load_model
from latentpt.thoughts.measure import Sums, summed_loss
from latentpt.thoughts.model import LanguageModel

MICRO_BATCH = 32
SAMPLING = Sampling(temperature=0.7, top_k=50)
TEXT_TOKENS = 80
BASELINE_TOKENS = 2_000_000  # enough to fix the frequencies of the frequent ones


class Measured(Section):
    """Measurements of one run after training."""

    of: dict[str, Any]
    """What was measured, see `subject`."""
    loss: float
    """Validation loss of the training forward, nats per token."""
    exact_loss: float
    """Validation loss of exact sequential decoding on the same samples, nats per token."""
    reached: list[float] = []
    """Slot by slot the share of tokens that thinks it in exact decoding; empty in measurements from before it was noted."""
    samples: int
    """Validation samples both were measured on."""
    sources: dict[str, float] = {}
    """Held-out corpus -> its exact loss, where there are several."""
    tasks: dict[str, dict[str, float]] = {}
    """Downstream task -> its metrics."""
    texts: dict[str, str]
    """Prompt -> its continuation."""


def measurement_path(plan: Plan, arm: str, seed: int) -> Path:
    """Where the measurements of a run are kept."""
    return plan.comparison.folder / "measured" / f"{plan.run_name(arm, seed)}.json"


def subject(plan: Plan, arm: str, seed: int) -> dict[str, Any]:
    """Everything that decides a measurement, as JSON: the checkpoint, the held-out data, what is asked of them."""
    folder = RunFolder(plan.run_folder(arm, seed))
    run = load_config(RunConfig, folder.config)
    validation = run.data.validation
    corpora = validation if isinstance(validation, dict) else {"": validation}
    return {
        "checkpoint": checkpoints.identity(checkpoints.find(folder.checkpoints)),
        "held_out": {name: source_identity(path) for name, path in corpora.items()},
        "samples": sample_limit(plan, run),
        "prompts": plan.comparison.prompts,
        "tasks": plan.comparison.tasks.model_dump(),
        "sampling": {"tokens": TEXT_TOKENS, **asdict(SAMPLING)},
    }


def kept(plan: Plan, arm: str, seed: int) -> Measured | None:
    """What was measured of a run as it is now; None if nothing was, or only of a run or in a way that is no more."""
    path = measurement_path(plan, arm, seed)
    if not path.is_file():
        return None
    try:
        measured = Measured.model_validate_json(path.read_bytes())
    except ValidationError:
        return None
    return measured if measured.of == subject(plan, arm, seed) else None


def measure(plan: Plan, arm: str, seed: int) -> Measured:
    """Measure a finished run, or read what was measured of it before."""
    known = kept(plan, arm, seed)
    if known is not None:
        return known
    of = subject(plan, arm, seed)
    if plan.comparison.threads is not None:
        torch.set_num_threads(plan.comparison.threads)
    model, run = load_model(plan.run_folder(arm, seed))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    limit = sample_limit(plan, run)
    end = open_training(run.data).eod_id if run.data.mask_documents else None
    corpora = {name: list(batches) for name, batches in held_out(run, limit).items()}
    forward = [summed_loss(model, batches, end_token=end) for batches in corpora.values()]
    exact = [summed_loss(model, batches, exact=True, end_token=end) for batches in corpora.values()]
    each = {name: sums.nats / sums.tokens for name, sums in zip(corpora, exact, strict=True)}
    measured = Measured(
        of=of,
        loss=mean(forward),
        exact_loss=mean(exact),
        reached=reached_shares(exact),
        samples=sum(len(batch) for batches in corpora.values() for batch in batches),
        sources=each if len(each) > 1 else {},
        tasks=task_metrics(model, run, plan.comparison.tasks, measurement_path(plan, arm, seed)),
        texts=continuations(model, run, plan.comparison.prompts),
    )
    text = json.dumps(measured.model_dump(), indent=1, ensure_ascii=False)
    write_text(measurement_path(plan, arm, seed), text + "\n")
    return measured


def sample_limit(plan: Plan, run: RunConfig) -> int | None:
    """Samples of each held-out corpus that arms are measured on; None means all."""
    return plan.comparison.evaluation_samples or run.validation.samples


def held_out(run: RunConfig, limit: int | None) -> dict[str, Iterator[Tensor]]:
    """Validation batches [b, L + 1] of each held-out corpus of a run, its first `limit` samples."""
    corpora = open_validation(run.data)
    return {name: validation_batches(corpus, MICRO_BATCH, limit) for name, corpus in corpora.items()}


def mean(sums: list[Sums]) -> float:
    """Nats per token over corpora."""
    return sum(one.nats for one in sums) / max(sum(one.tokens for one in sums), 1)


def reached_shares(sums: list[Sums]) -> list[float]:
    """Slot by slot the share of the corpora's tokens that thinks it."""
    tokens = max(sum(one.tokens for one in sums), 1)
    return [sum(slot) / tokens for slot in zip(*(one.reached for one in sums), strict=True)]


def task_metrics(
    model: LanguageModel, run: RunConfig, asked: TasksConfig, path: Path
) -> dict[str, dict[str, float]]:
    """Metrics of the downstream tasks that are asked for, by exact decoding; answers are kept beside the measurement."""
    if not asked.names:
        return {}
    writer = Writer(model, find_tokenizer(data_folders(run.data), model))
    answers = Answers(path.with_suffix(".answers.jsonl"), identity(model, "exact"))
    adapter = make_adapter(writer, MICRO_BATCH, "exact", answers)
    data = task_data(asked.data)
    found = run_tasks(adapter, asked.names, data, asked.fewshot, asked.limit, online=False)
    return {name: figures.metrics for name, figures in found.items()}


def continuations(model: LanguageModel, run: RunConfig, prompts: list[str]) -> dict[str, str]:
    """What the model writes after each prompt, sampled with one fixed seed."""
    if not prompts:
        return {}
    writer = Writer(model, find_tokenizer(data_folders(run.data), model))
    return dict(zip(prompts, writer.write(prompts, TEXT_TOKENS, SAMPLING), strict=True))


def unigram_loss(run: RunConfig, limit: int | None) -> float:
    """Nats per token of predicting held-out tokens from their frequency in the training data alone.

    A model that learnt nothing but frequencies would have this loss; counts start at one.
    """
    counts = torch.ones(run.model.vocab_size, dtype=torch.float64)
    train = open_training(run.data)
    for first in range(0, BASELINE_TOKENS // run.data.sequence_length, MICRO_BATCH):
        tokens = torch.from_numpy(train.read(np.arange(first, first + MICRO_BATCH), run.seed))
        counts += torch.bincount(tokens[:, 1:].flatten(), minlength=len(counts))
    surprise = -torch.log(counts / counts.sum())
    corpora = held_out(run, limit).values()
    targets = torch.cat([batch[:, 1:].flatten() for batches in corpora for batch in batches])
    return surprise[targets].mean().item()
