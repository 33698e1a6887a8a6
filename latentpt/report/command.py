"""The page about a run, made of what its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentpt.config import ConfigError, load_config
from latentpt.evaluation.results import read_results
from latentpt.files import write_bytes, write_text
from latentpt.report.curves import draw_run
from latentpt.report.page import run_page
from latentpt.report.texts import Written, read_texts, texts_of
from latentpt.run import RunConfig, RunFolder, checkpoints, read_metrics


def report(run: str | Path, prompts: Sequence[str] = (), write: bool = True) -> Path:
    """Write report.html and report.png into a run's folder; returns the page.

    With `write` the latest checkpoint is asked for texts, unless it was asked before; else the page has those that are
    there. Raises ConfigError for a folder that holds no run.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no {folder.config.name}")
    config = load_config(RunConfig, folder.config)
    lines = read_metrics(folder.metrics)
    written: list[Written] = []
    if write and checkpoints.committed(folder.checkpoints):
        written = texts_of(folder, config, prompts)
    elif (kept := read_texts(folder)) is not None:
        written = [Written(**one) for one in kept["texts"]]
    drawn = draw_run(lines, folder.path.resolve().name)
    write_bytes(folder.picture, drawn)
    measured = read_results(folder.evaluation)
    write_text(folder.report, run_page(folder, config, lines, drawn, written, measured))
    return folder.report
