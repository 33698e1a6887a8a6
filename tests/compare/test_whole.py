"""A whole comparison with the real trainer: plan, run, report."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from latentpt.compare import commands
from latentpt.compare.running.execute import Share
from latentpt.compare.running.launching import Interrupted
from latentpt.config import ConfigError
from tests.compare.conftest import BASE, STAGES
from tests.training.small import END, write_text_shards

TRAINER = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"


def small_base(**changes):
    """A base run over a few shards of real text, written beside the comparison."""
    write_text_shards(Path("shards"), 20_000)
    base = {
        **BASE,
        "model": {**BASE["model"], "vocab_size": END + 1},
        "data": {"train": "shards/train", "validation": "shards/validation", "sequence_length": 16},
        "training": {"steps": 6, "batch_samples": 4, "micro_batch": 2},
        "validation": {"every": 2, "samples": 8},
        "monitor": {"every": 1, "tensorboard": False, "report": False},
        **changes,
    }
    Path("base.yaml").write_text(yaml.safe_dump(base))


@pytest.mark.slow
def test_a_comparison_from_plan_to_report(comparison):
    small_base()
    comparison(arms={"vanilla": {}, "stages": STAGES})
    assert "vanilla" in commands.plan("comparison.yaml", [], TRAINER)
    commands.run("comparison.yaml", [], TRAINER)
    written = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("summary.json")}
    assert len(written) == 2
    text = commands.report("comparison.yaml", [], TRAINER)
    for arm in ("vanilla", "stages"):
        measured = json.loads(Path(f"out/measured/{arm}-seed0.json").read_text())
        assert measured["samples"] == 8
        assert measured["exact_loss"] == pytest.approx(measured["loss"], abs=1e-4)  # both arms are exact
        summary = json.loads(Path(f"out/runs/{arm}-seed0/summary.json").read_text())
        assert measured["loss"] == pytest.approx(summary["validation_loss"], abs=1e-4)
    assert re.search(r"alone reach \d\.\d{4} \(unigram\)", text)
    assert Path("out/report.html").is_file()
    commands.run("comparison.yaml", [], TRAINER)
    assert written == {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("summary.json")}


def losses_of(folder):
    """Run -> its exact loss, from the table of a finished study."""
    with Path(folder, "runs.csv").open() as file:
        return {(row["name"], row["seed"]): row["exact_loss"] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_ladder_that_is_interrupted_and_resumed_gives_the_same_table(comparison):
    """Two sizes and two budgets; one study in one go, two at once, the other cut short twice and ended by two tasks."""
    small_base(training={"steps": 40, "batch_samples": 4, "micro_batch": 4})
    ladder = {"sizes": [1, 2], "budgets": [{"flops": 4e8}, {"flops": 8e8}], "tokens_per_parameter": [0, 1e9]}
    comparison(budget="training_flops", ladder=ladder | {"points": 2}, arms={"vanilla": {}, "stages": STAGES})
    whole, pieces = ["output=whole"], ["output=pieces"]
    assert "8 runs" in commands.plan("comparison.yaml", whole, TRAINER)
    commands.run("comparison.yaml", whole, TRAINER, Share(at_once=2))
    text = commands.report("comparison.yaml", whole, TRAINER)
    assert "too few runs" in text and Path("whole/report.html").is_file()

    commands.plan("comparison.yaml", pieces, TRAINER)
    for minutes in (0.1, 0.4):
        with pytest.raises(Interrupted, match="time is up"):
            commands.run("comparison.yaml", pieces, TRAINER, Share(minutes=minutes))
    for number in range(2):
        commands.run("comparison.yaml", pieces, TRAINER, Share(task=(number, 2)))
    trained = {path: path.stat().st_mtime_ns for path in Path("pieces/runs").rglob("summary.json")}
    assert len(trained) == 8
    commands.run("comparison.yaml", pieces, TRAINER)
    assert trained == {path: path.stat().st_mtime_ns for path in trained}
    commands.report("comparison.yaml", pieces, TRAINER)
    assert losses_of("pieces") == losses_of("whole")


def test_a_changed_comparison_or_changed_data_is_not_run_or_reported_by_the_old_plan(comparison):
    small_base()
    comparison(arms={"vanilla": {}})
    commands.plan("comparison.yaml", [], TRAINER)
    with pytest.raises(ConfigError, match="the comparison was changed after it was planned"):
        commands.run("comparison.yaml", ["seeds=[0,1]"], TRAINER)
    shutil.rmtree("shards")
    write_text_shards(Path("shards"), 200_000)
    with pytest.raises(ConfigError, match="the data was changed after it was planned"):
        commands.report("comparison.yaml", [], TRAINER)
