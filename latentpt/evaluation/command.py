"""The eval command: held-out loss, tasks and diagnostics of one model, into a folder that an interrupted run goes on in.

FOLDER/answers.jsonl      every answer as it was found
FOLDER/results.json       of which weights what was asked and what came out
FOLDER/table.txt          the same to read
FOLDER/diagnostics.html   with --diagnostics
FOLDER/tensorboard/       the same for TensorBoard
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from latentpt.config import ConfigError, require_at_least
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.diagnostics import diagnose
from latentpt.evaluation.harness import load_local_task, make_adapter, run_tasks
from latentpt.evaluation.held_out import held_out_loss
from latentpt.evaluation.page import diagnostics_page
from latentpt.evaluation.scoring import Forward
from latentpt.files import write_text
from latentpt.generation.text import Writer
from latentpt.run import checkpoint_step
from latentpt.thoughts.model import LanguageModel

Results = dict[str, dict[str, float]]


def evaluate(
    model: LanguageModel,
    writer: Writer | None,
    folder: Path,
    sources: Mapping[str, str],
    arguments: argparse.Namespace,
) -> str:
    """Measure what the arguments ask for; returns the table. Raises ConfigError or DataError for what cannot be done."""
    _check(model, arguments)
    if arguments.diagnostics and not sources:
        raise ConfigError("--diagnostics needs held-out data; name a shard folder with --data")
    tasks = [name for name in arguments.tasks.split(",") if name]
    data = task_data(arguments.task_data)
    if not arguments.online:
        for name in tasks:  # before anything is measured
            load_local_task(name, data, arguments.fewshot)
    answers = Answers(folder / "answers.jsonl", identity(model, arguments.forward))
    results: Results = {}
    forwards: list[Forward] = ["training", "exact"] if arguments.forward == "both" else [arguments.forward]
    for name, source in sources.items():
        for forward in forwards:
            found = held_out_loss(
                model, source, arguments.length or model.config.max_positions, arguments.batch_size,
                arguments.samples, forward, answers, arguments.mask_documents,
            )  # fmt: skip
            results[f"{name} ({forward})"] = found.metrics
    if tasks:
        if writer is None:
            raise ConfigError("tasks need a tokenizer; name one with --tokenizer")
        adapter = make_adapter(writer, arguments.batch_size, forwards[0], answers)
        results |= run_tasks(adapter, tasks, data, arguments.fewshot, arguments.limit, arguments.online)
    if arguments.diagnostics:
        found_out = diagnose(model, next(iter(sources.values())), arguments.length or model.config.max_positions,
                             arguments.batch_size, arguments.samples or 32, arguments.mask_documents)  # fmt: skip
        write_text(folder / "diagnostics.html", diagnostics_page(folder.parent.name, found_out))
        results["diagnostics"] = found_out.summary()
    if not results:
        raise ConfigError("there is nothing to measure: name --tasks, --data, or a run with held-out data")
    text = table(results)
    asked = {key: value for key, value in vars(arguments).items() if key != "device"}
    record = {"model": identity(model), "asked": asked, "results": results}
    write_text(folder / "results.json", json.dumps(record, indent=1) + "\n")
    write_text(folder / "table.txt", text + "\n")
    step = 0 if arguments.run is None else checkpoint_step(arguments.run, arguments.step)
    _to_tensorboard(folder / "tensorboard", results, step)
    return text


def _check(model: LanguageModel, arguments: argparse.Namespace) -> None:
    """Raise ConfigError for counts that count nothing, samples that exceed a table of positions, a missing harness."""
    require_at_least(arguments, batch_size=1, samples=1, length=1, limit=1, fewshot=0)
    limit = model.config.max_positions
    if model.config.positions == "learned" and (arguments.length or 0) > limit:
        raise ConfigError(f"--length {arguments.length} exceeds the model's table of {limit} positions")
    if arguments.tasks and find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs lm-eval-harness; pip install latentpt[eval]")


def task_data(asked: str | None) -> Path:
    """Folder of the local tasks' data: what was asked for, LATENTPT_SHARED's, or that of shared/ beside the checkout."""
    if asked is not None:
        return Path(asked)
    shared = os.environ.get("LATENTPT_SHARED", Path(__file__).resolve().parents[3] / "shared")
    return Path(shared) / "data" / "eval"


def identity(model: LanguageModel, forward: str = "") -> str:
    """Says which model and which forward answered: a hash of its configuration and of a sample of its weights.

    Every parameter gives its ends and a thousand entries between them; the same on every device.
    """
    halting = model.method.halting
    stops = "" if halting is None else f" {halting.threshold}"
    digest = hashlib.sha256(f"{model.config} {model.thoughts} {forward}{stops}".encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        spread = flat[:: max(1, len(flat) // 1000)]
        digest.update(f"{name} {flat[:8].tolist()} {flat[-8:].tolist()} {spread.tolist()}".encode())
    return digest.hexdigest()


def table(results: Results) -> str:
    """Results as lines of `name  metric  value`."""
    rows = [(name, metric, value) for name, metrics in results.items() for metric, value in metrics.items()]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:{width}}  {metric:28} {_number(value)}" for name, metric, value in rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4f}"


def _to_tensorboard(folder: Path, results: Results, step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        for name, metrics in results.items():
            for metric, value in metrics.items():
                board.add_scalar(f"{name}/{metric}", value, step)
