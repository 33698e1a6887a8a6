"""The eval command: held-out loss, tasks and diagnostics of one model, into a folder that an interrupted run goes on in.

FOLDER/answers.jsonl      every answer as it was found
FOLDER/results.json       what was ever asked of which weights, and what came out, see `results`
FOLDER/table.txt          the same to read
FOLDER/diagnostics-*.html with --diagnostics, one page a checkpoint and way of asking
FOLDER/tensorboard/       the same for TensorBoard
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from latentpt.config import ConfigError, require_at_least
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.diagnostics import diagnose, verdict
from latentpt.evaluation.harness import load_local_task, make_adapter, run_tasks
from latentpt.evaluation.held_out import held_out_loss
from latentpt.evaluation.page import diagnostics_page
from latentpt.evaluation.results import Figures, Measurement, keep_results, read_results, table
from latentpt.evaluation.scoring import Forward
from latentpt.files import write_text
from latentpt.generation.text import Writer
from latentpt.run import checkpoint_step
from latentpt.thoughts.identity import identity
from latentpt.thoughts.model import LanguageModel

DIAGNOSED = 32
"""Samples that --diagnostics looks at unless --samples says otherwise."""


def evaluate(
    model: LanguageModel,
    writer: Writer | None,
    folder: Path,
    sources: Mapping[str, str],
    arguments: argparse.Namespace,
) -> str:
    """Measure what the arguments ask for; returns the table. Raises ConfigError or DataError for what cannot be done."""
    evaluation = _Evaluation(model, folder, arguments)
    evaluation.check(sources, writer)
    asked = [
        *evaluation.held_out(sources),
        *(() if writer is None else evaluation.tasks(writer)),
        *(evaluation.diagnostics(*next(iter(sources.items()))) if arguments.diagnostics else ()),
    ]
    keep_results(folder, asked)
    _to_tensorboard(folder / "tensorboard", asked)
    return "\n".join([*evaluation.words, table(asked)])


class _Evaluation:
    """One call of the command."""

    def __init__(self, model: LanguageModel, folder: Path, arguments: argparse.Namespace) -> None:
        self.model, self.folder, self.asked = model, folder, arguments
        self.length: int = arguments.length or model.config.max_positions
        self.forwards: list[Forward] = (
            ["training", "exact"] if arguments.forward == "both" else [arguments.forward]
        )
        self.task_names = [name for name in arguments.tasks.split(",") if name]
        self.data = task_data(arguments.task_data)
        self.step = None if arguments.run is None else checkpoint_step(arguments.run, arguments.step)
        self.weights = identity(model)
        self.words: list[str] = []
        """What is said above the table."""

    def check(self, sources: Mapping[str, str], writer: Writer | None) -> None:
        """Raise ConfigError, before anything is measured, for what cannot be."""
        asked, limit = self.asked, self.model.config.max_positions
        require_at_least(asked, batch_size=1, samples=1, length=1, limit=1, fewshot=0)
        if self.model.config.positions == "learned" and self.length > limit:
            raise ConfigError(f"--length {self.length} exceeds the model's table of {limit} positions")
        if self.task_names and find_spec("lm_eval") is None:
            raise ConfigError("--tasks needs lm-eval-harness; pip install -c constraints.txt -e '.[eval]'")
        if self.task_names and writer is None:
            raise ConfigError("tasks need a tokenizer; name one with --tokenizer")
        if asked.diagnostics and not sources:
            raise ConfigError("--diagnostics needs held-out data; name a shard folder with --data")
        if not sources and not self.task_names:
            raise ConfigError(
                "there is nothing to measure: name --tasks, --data, or a run with held-out data"
            )
        if not asked.online:
            for name in self.task_names:
                load_local_task(name, self.data, asked.fewshot)
        read_results(self.folder)
        self.answers = Answers(self.folder / "answers.jsonl", identity(self.model, asked.forward))

    def measured(self, name: str, figures: Figures, **settings: object) -> Measurement:
        """An entry about these weights."""
        return Measurement(name, settings, self.weights, self.step, figures)

    def held_out(self, sources: Mapping[str, str]) -> Iterator[Measurement]:
        """Loss of every source by every forward."""
        asked = self.asked
        for name, source in sources.items():
            for forward in self.forwards:
                found = held_out_loss(
                    self.model, source, self.length, asked.batch_size, asked.samples, forward, self.answers,
                    asked.mask_documents,
                )  # fmt: skip
                yield self.measured(
                    f"{name} ({forward})", found.figures, source=str(source), length=self.length,
                    samples=asked.samples, mask_documents=asked.mask_documents,
                )  # fmt: skip

    def tasks(self, writer: Writer) -> Iterator[Measurement]:
        """Tasks of the harness."""
        if not self.task_names:
            return
        asked, forward = self.asked, self.forwards[0]
        with tqdm(desc="tasks", unit="request", leave=False, disable=None) as progress:
            adapter = make_adapter(writer, asked.batch_size, forward, self.answers, progress.update)
            found = run_tasks(adapter, self.task_names, self.data, asked.fewshot, asked.limit, asked.online)
        for name, figures in found.items():
            yield self.measured(
                name, figures, forward=forward, fewshot=asked.fewshot, limit=asked.limit, online=asked.online
            )

    def diagnostics(self, name: str, source: str) -> Iterator[Measurement]:
        """Whether the thoughts are used, on one source, with a page."""
        asked, samples = self.asked, self.asked.samples or DIAGNOSED
        found = diagnose(self.model, source, self.length, asked.batch_size, samples, asked.mask_documents)
        step = "" if self.step is None else f"-step-{self.step}"
        masked = "-masked" if asked.mask_documents else ""
        page = self.folder / f"diagnostics{step}-{name}-{found.samples}x{self.length}{masked}.html"
        title = Path(asked.run or asked.model).resolve().name
        where = f"{name} ({source})" + ("" if self.step is None else f", checkpoint of step {self.step:,}")
        write_text(page, diagnostics_page(title, where, found))
        self.words += [verdict(found), str(page)]
        yield self.measured(
            "diagnostics", found.figures, source=str(source), length=self.length, samples=samples,
            mask_documents=asked.mask_documents,
        )  # fmt: skip


def task_data(asked: str | None) -> Path:
    """Folder of the local tasks' data: what was asked for, LATENTPT_SHARED's, or that of shared/ beside the checkout."""
    if asked is not None:
        return Path(asked)
    shared = os.environ.get("LATENTPT_SHARED", Path(__file__).resolve().parents[3] / "shared")
    return Path(shared) / "data" / "eval"


def _to_tensorboard(folder: Path, measurements: list[Measurement]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        for one in measurements:
            for metric, value in one.figures.metrics.items():
                board.add_scalar(f"{one.name}/{metric}", value, one.step or 0)
