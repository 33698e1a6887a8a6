"""The report of a run: whether its latents did anything, as report.json and report.html in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from latentpt.config import ConfigError, load_config
from latentpt.files import write_text
from latentpt.finetuning.config import FinetuneConfig
from latentpt.finetuning.diagnostics import LatentReport, diagnose_latents
from latentpt.finetuning.page import report_page
from latentpt.finetuning.preparing import BEST, usable_questions
from latentpt.finetuning.reasoner import load_reasoner
from latentpt.finetuning.stages import planned_stages
from latentpt.run import RunFolder, read_metrics


def report(run: str | Path, data: str | None = None, rows: int = 200) -> tuple[LatentReport, Path]:
    """Diagnose the best checkpoint of a run on the first `rows` validation questions, or those of the file `data`.

    Raises ConfigError for a folder without one.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no {folder.config.name}")
    config = load_config(FinetuneConfig, folder.config)
    reasoner, recipe, tokenizer = load_reasoner(folder.path / BEST)
    questions, _ = usable_questions(
        config,
        data or config.data.validation,
        rows,
        "questions",
        tokenizer,
        planned_stages(config),
        recipe,
        [],
    )
    found = diagnose_latents(
        reasoner, recipe, tokenizer, questions, config.answers.batch, config.answers.max_new_tokens
    )
    write_text(
        folder.path / "report.json", json.dumps({"verdict": found.verdict, **asdict(found)}, indent=1) + "\n"
    )
    page = folder.path / "report.html"
    write_text(page, report_page(folder.path.name, read_metrics(folder.metrics), found))
    return found, page
