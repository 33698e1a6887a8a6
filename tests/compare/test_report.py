"""The report: figures of the table, a verdict only where the spread allows one, files that need no others."""

import re
from pathlib import Path

import pytest

from latentpt.compare.execute import execute
from latentpt.compare.plan import make_plan, write_plan
from latentpt.compare.report import row, verdict, write_report
from latentpt.compare.results import read_results
from latentpt.config import ConfigError


@pytest.fixture
def results(comparison, trainer, measured):
    def run(**changes):
        plan = make_plan(comparison(prompts=["The "], **changes))
        write_plan(plan)
        execute(plan, trainer[0], measured[0])
        return read_results(plan)

    return run


def test_a_row_holds_mean_and_spread_over_seeds(results):
    latent = results(seeds=[0, 1]).arms[1]
    cells = row(latent)
    assert cells[0] == "latent"
    assert cells[6] == "20 ± 0"
    assert cells[9] == f"1.9100 ± {0.02 / 2**0.5:.4f}"
    assert cells[10].startswith("+0.0010")


def test_a_single_seed_gets_no_verdict(results):
    assert verdict(results(seeds=[0])) == [
        "No verdict: a single seed says nothing about the spread that a difference must exceed."
    ]


def test_a_verdict_is_given_only_beyond_the_spread(results):
    sentences = verdict(results(seeds=[0, 1, 2, 3]))
    assert sentences[1].startswith("latent is better than vanilla (-0.1")
    assert sentences[2].startswith("stages and vanilla: not distinguishable")


def test_files_are_self_contained_and_generated_text_is_escaped(results):
    text = write_report(results(seeds=[0, 1]), unigram=4.0)
    page = Path("out/report.html").read_text()
    assert Path("out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "&lt;cat&gt; sat" in page and "<cat>" not in page
    assert "4.0000 (unigram)" in page
    assert "The <cat> sat" in text


def test_a_comparison_without_finished_runs_has_no_report(comparison):
    plan = make_plan(comparison())
    write_plan(plan)
    with pytest.raises(ConfigError, match="no finished run yet"):
        read_results(plan)


def test_a_half_finished_comparison_is_reported_as_such(comparison, trainer, measured, monkeypatch):
    plan = make_plan(comparison())
    write_plan(plan)
    monkeypatch.setenv("FAIL_AT", "3")
    with pytest.raises(ConfigError):
        execute(plan, trainer[0], measured[0])
    assert "Not every planned run is finished" in write_report(read_results(plan), unigram=4.0)
