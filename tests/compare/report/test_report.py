"""The report: figures of the table, a verdict only where the spread allows one, files that need no others."""

import base64
import csv
import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from latentpt.compare.planning.folder import write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.compare.report.published import archive, latex_table
from latentpt.compare.report.results import ArmResult, Results, read_results, source_table
from latentpt.compare.report.write import HEADER, row, verdict, write_report
from latentpt.compare.running.execute import execute
from latentpt.compare.running.launching import Interrupted
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
    assert cells[6] == "30.0 G"  # counted by the training
    assert cells[7] == "20 ± 0"
    assert cells[10] == f"1.9100 ± {0.02 / 2**0.5:.4f}"
    assert cells[11] == "0.0100"
    assert cells[12].startswith("+0.0010")


def test_a_single_seed_gets_no_verdict(results):
    (sentence,) = verdict(results(seeds=[0]))
    assert sentence.startswith("No verdict: not two seeds")


def test_a_verdict_is_given_only_beyond_the_spread(results):
    needed, better, alike = verdict(results(seeds=[0, 1, 2, 3]))
    assert "differences from vanilla above" in needed
    assert better.startswith("Better than vanilla: latent (-0.1")
    assert alike.startswith("Not distinguishable from vanilla: stages")


def test_the_verdict_compares_arms_on_the_seeds_that_all_have_finished(results):
    """The loss grows by 0.01 a seed, so a mean over more seeds would make an arm look worse than it is."""
    whole = results(seeds=[0, 1, 2, 3])
    vanilla, latent, stages = whole.arms
    partly = Results(whole.plan, [vanilla, ArmResult(latent.plan, latent.runs[:2]), stages])
    assert verdict(partly)[1] == "Better than vanilla: latent (-0.1000)."
    with_one = Results(whole.plan, [vanilla, ArmResult(latent.plan, latent.runs[:1]), stages])
    assert verdict(with_one)[0].startswith("No verdict: not two seeds")


def test_an_arm_trained_anew_is_not_reported_with_the_loss_of_the_old_run(results, trainer, measured):
    plan = results(seeds=[0, 1]).plan
    shutil.rmtree(plan.run_folder("latent", 1))
    execute(plan, trainer[0], after=lambda *_: None)  # trained, and not measured yet
    assert [[run.seed for run in arm.runs] for arm in read_results(plan).arms] == [[0, 1], [0], [0, 1]]
    execute(plan, trainer[0], measured[0])
    assert read_results(plan).complete


def test_a_verdict_needs_the_reference(results):
    whole = results(seeds=[0, 1])
    without = Results(whole.plan, whole.arms[1:])
    assert verdict(without) == ["No verdict: vanilla and another arm must be finished first."]
    assert write_report(without, unigram=4.0)


def test_files_are_self_contained_and_generated_text_is_escaped(results):
    text = write_report(results(seeds=[0, 1]), unigram=4.0)
    page = Path("out/report.html").read_text()
    for name in ("loss.png", "arms.png"):
        picture = Path("out", name).read_bytes()
        assert picture.startswith(b"\x89PNG") and base64.b64encode(picture).decode() in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "&lt;cat&gt; sat" in page and "<cat>" not in page
    assert "4.0000 (unigram)" in page
    assert "The <cat> sat" in text


def test_every_figure_is_there_as_data_and_what_it_was_made_from_too(results):
    found = results(seeds=[0, 1])
    write_report(found, unigram=4.0)
    complete = json.loads(Path("out/results.json").read_text())
    with Path("out/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(complete["runs"]) == 6
    for row_, run in zip(rows, complete["runs"], strict=True):
        assert float(row_["exact_loss"]) == run["exact_loss"] and row_["name"] == run["name"]
    assert complete["made_with"]["packages"]["torch"]
    with Path("out/table.csv").open() as file:
        assert next(csv.reader(file)) == HEADER
    with tarfile.open("out/raw.tar.xz") as tar:
        names = set(tar.getnames())
    for arm in ("vanilla", "latent", "stages"):
        for seed in (0, 1):
            of = f"{arm}-seed{seed}"
            assert {f"runs/{of}/config.yaml", f"runs/{of}/metrics.jsonl", f"measured/{of}.json"} <= names


def test_the_same_results_give_the_same_archive(results):
    found = results(seeds=[0])
    assert archive(found.plan) == archive(found.plan)


def test_a_study_goes_on_from_its_archive_without_training_a_finished_run_again(results, trainer, measured):
    plan = results(seeds=[0, 1]).plan
    shutil.rmtree(plan.run_folder("latent", 1))
    before = read_results(plan)
    Path("raw.tar.xz").write_bytes(archive(plan))
    shutil.rmtree("out")
    with tarfile.open("raw.tar.xz") as tar:
        tar.extractall("out", filter="data")
    write_plan(plan)  # as `run` does
    found, launches = read_results(plan), trainer[1]()
    assert [row(arm) for arm in found.arms] == [row(arm) for arm in before.arms] and not found.complete
    execute(plan, trainer[0], measured[0])
    assert read_results(plan).complete and trainer[1]() == [*launches, "latent-seed1"]


def test_latex_cells_are_escaped():
    lines = latex_table(["arm", "a_b"], [["x & y", "1 ± 2 %"]]).splitlines()
    assert lines[2] == r"arm & a\_b \\" and lines[4] == r"x \& y & 1 $\pm$ 2 \% \\"


def test_losses_by_source_and_tasks_are_reported_where_there_are_several(results):
    found = results(seeds=[0, 1])
    assert source_table(found.arms)[0] == ["arm"] and "by source" not in page_of(found)
    several = [
        ArmResult(arm.plan, [with_more(run, 2.0 + run.seed) for run in arm.runs]) for arm in found.arms
    ]
    found = Results(found.plan, several)
    assert source_table(found.arms)[1][0] == ["vanilla", "2.5000 ± 0.7071", "3.0000 ± 0.0000"]
    text = page_of(found)
    assert "Exact-decode loss by source" in text and "2.5000 ± 0.7071" in text and "lambada acc" in text
    assert "books" in Path("out/sources.csv").read_text()


def with_more(run, loss):
    more = {"sources": {"books": loss, "code": 3.0}, "tasks": {"lambada": {"acc": 0.5}}}
    return replace(run, measured=run.measured.model_copy(update=more))


def page_of(results):
    write_report(results, unigram=4.0)
    return Path("out/report.html").read_text()


def test_the_head_says_when_on_what_and_with_what_the_arms_were_trained(results):
    whole = results(seeds=[0, 1])
    for number, arm in enumerate(["vanilla", "latent"]):
        made = {
            "date": f"2026-01-0{number + 1} 10:00:00", "device": "cpu", "packages": {"torch": f"2.{number}"},
            "machine": {"processor": "<A chip>", "cores": 2, "memory_gib": 23}, "python": "3.11.7", "git": "abcdef" * 6,
        }  # fmt: skip
        (whole.plan.run_folder(arm, 0) / "versions.json").write_text(json.dumps(made))
    write_report(whole, unigram=4.0)
    page = Path("out/report.html").read_text()
    head = page.split("<table")[0]
    assert "trained 2026-01-01 to 2026-01-02, reported 20" in head
    assert "cpu, &lt;A chip&gt;, 2 cores, 23 GiB" in head
    assert "Python 3.11.7, torch 2.0 / latentpt at abcdefabcd, Python 3.11.7, torch 2.1" in head
    assert "trained 2026-01-01 to 2026-01-02" in Path("out/report.md").read_text()


def test_a_comparison_without_finished_runs_has_no_report(comparison):
    plan = make_plan(comparison())
    write_plan(plan)
    with pytest.raises(ConfigError, match="no finished run yet"):
        read_results(plan)


def test_a_half_finished_comparison_is_reported_as_such(comparison, trainer, measured, monkeypatch):
    plan = make_plan(comparison())
    write_plan(plan)
    monkeypatch.setenv("STOP_AT", "3")
    with pytest.raises(Interrupted):
        execute(plan, trainer[0], measured[0])
    assert "Not every planned run is finished" in write_report(read_results(plan), unigram=4.0)
