"""A whole comparison with the real trainer: plan, run, report."""

import json
import re
from pathlib import Path

import pytest
import yaml

from latentpt.compare import commands
from tests.compare.conftest import BASE, STAGES
from tests.training.small import END, write_text_shards

TRAINER = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"


@pytest.mark.slow
def test_a_comparison_from_plan_to_report(comparison):
    write_text_shards(Path("shards"), 20_000)
    base = {
        **BASE,
        "model": {**BASE["model"], "vocab_size": END + 1},
        "data": {"train": "shards/train", "validation": "shards/validation", "sequence_length": 16},
        "training": {"steps": 6, "batch_samples": 4, "micro_batch": 2},
        "validation": {"every": 2, "samples": 8},
        "monitor": {"every": 1, "tensorboard": False, "report": False},
    }
    Path("base.yaml").write_text(yaml.safe_dump(base))
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
