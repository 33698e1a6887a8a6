"""The report of a ladder whose losses follow laws that are known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from latentpt.compare.planning.folder import write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.compare.report.blocks import Table
from latentpt.compare.report.results import ArmResult, Results, RunResult
from latentpt.compare.report.scaling import (
    judged,
    paired_table,
    seed_words,
    source_blocks,
    verdicts,
    write_scaling,
)
from latentpt.compare.report.study import as_data, read_study
from latentpt.compare.running.measure import Measured
from latentpt.pages.tables import quantity
from tests.compare.conftest import STAGES

LOOP = {"thoughts": {"method": "loop", "num_thoughts": 1}}
PHI = 0.5


def law(parameters, tokens, factor=1.0):
    return 1.0 + 6.0 * (factor * parameters) ** -0.3 + 20.0 * tokens**-0.35


@pytest.fixture
def study(comparison):
    """A function that makes the results of a ladder: a loop is worth 2 ** PHI times its parameters, stages `worse` nats."""

    def make(noise=0.002, seeds=(0, 1), worse=0.05, finished=lambda arm, seed: True, **changes):
        ladder = {
            "sizes": [2, 3, 4, 6], "aspect": 16, "budgets": [{"flops": c} for c in (2e10, 8e10, 3.2e11)],
            "tokens_per_parameter": [0, 1e9], "served": [1e6, 1e12], "draws": 200, **changes,
        }  # fmt: skip
        arms = {"vanilla": {}, "loop": LOOP, "stages": STAGES}
        plan = make_plan(comparison(budget="training_flops", ladder=ladder, arms=arms, seeds=[*seeds]))
        write_plan(plan)
        results = [
            ArmResult(arm, [run(arm, seed, noise, worse) for seed in arm.seeds if finished(arm, seed)])
            for arm in plan.arms
        ]
        return Results(plan, [arm for arm in results if arm.runs])

    return make


def run(arm, seed, noise, worse):
    shared = np.random.default_rng([seed, arm.size, int(arm.rung)]).normal()
    own = np.random.default_rng([seed, arm.size, int(arm.rung), len(arm.arm)]).normal()
    true = law(arm.body_parameters, arm.tokens, 2**PHI if arm.arm == "loop" else 1.0)
    loss = true + noise * (shared + 0.3 * own) + (worse if arm.arm == "stages" else 0)
    curve = {key: np.array([1.0, 2.0]) for key in ("tokens", "training_flops", "seconds", "loss")}
    more = {"sources": {"books": loss - 0.1, "code": loss + 0.1}, "tasks": {"lambada": {"acc": loss / 10}}}
    measured = Measured(of={}, loss=loss, exact_loss=loss, samples=8, texts={}, **more)
    return RunResult(seed, curve, 10.0, arm.tokens, arm.training_flops, measured)


def test_laws_multipliers_and_phi_are_those_that_made_the_losses(study):
    found = read_study(study())
    vanilla, loop, stages = found.arms.values()
    for name, true in (("a", 0.3), ("b", 0.35)):
        assert vanilla.law[name].value == pytest.approx(true, abs=0.03)
        assert vanilla.law[name].high - vanilla.law[name].low < 0.1
    assert loop.phi.low < PHI < loop.phi.high and loop.phi.high - loop.phi.low < 0.4
    assert [m.flops for m in stages.multipliers] == [2e10, 8e10, 3.2e11]
    assert judged(stages.multipliers[-1].training) == -1
    assert set(loop.multipliers[0].lifetime) == {1e6, 1e12}


def test_noise_that_hides_the_difference_is_too_small_to_tell(study):
    found = read_study(study(noise=0.2, worse=0.0))
    words = verdicts(found)
    assert words[1].startswith("stages is too small to tell")
    for *_, difference, _, margin, _, _, said in paired_table(found)[1]:
        assert (said == "too small to tell") == (abs(float(difference)) <= float(margin))


def test_paired_differences_take_what_seeds_share_away(study):
    rows = paired_table(read_study(study(noise=0.05, worse=0.1)))[1]
    stages = [row for row in rows if row[0] == "stages"]
    assert [row[-1] for row in stages] == ["worse"] * 3
    assert all(float(row[4]) < 0.1 for row in stages)


def test_what_the_seeds_allow_to_see_is_what_the_table_tells_from_nothing(study):
    found = read_study(study())
    rows = paired_table(found)[1]
    for flops, words in zip(found.budgets, seed_words(found), strict=True):
        margins = [float(row[4]) for row in rows if row[1] == quantity(flops)]
        seen = float(re.search(r"paired differences of ([\d.]+) and more can be seen", words)[1])
        assert len(margins) == 2 and seen == pytest.approx(np.median(margins), abs=1e-4)


def test_a_verdict_says_whose_decoding_costs_more(study):
    """A loop of two slots is dearer to decode than a plain decoder of the same loss."""
    found = read_study(study())
    loop = found.arms["loop"].multipliers[-1].inference
    assert judged(loop) == -1
    assert "Decoding, vanilla needs fewer FLOPs per token" in verdicts(found)[0]


def test_one_seed_says_nothing_of_the_spread(study):
    found = read_study(study(seeds=[0]))
    assert "nothing is known about their spread" in seed_words(found)[0]
    assert {row[-1] for row in paired_table(found)[1]} == {"one seed says nothing"}


def test_a_study_with_few_runs_is_reported_without_a_law(study):
    results = study(finished=lambda arm, seed: arm.rung == 2e10 and seed == 0)
    text = write_scaling(results, unigram=4.0)
    assert "too few runs" in text and "16 of 72 planned runs" not in text and "60 of 72 planned runs" in text


def test_a_study_whose_baseline_is_not_run_gives_no_verdict(study):
    results = study(finished=lambda arm, seed: arm.arm != "vanilla")
    assert "No verdict: vanilla and another arm must be finished first." in write_scaling(
        results, unigram=4.0
    )


def test_page_tables_and_figures_are_written_and_say_the_same(study):
    results = study()
    text = write_scaling(results, unigram=4.0)
    page, markdown = Path("out/report.html").read_text(), Path("out/report.md").read_text()
    for name in ("isoflop.png", "frontier.png", "multipliers.png", "costs.png"):
        assert Path("out", name).read_bytes().startswith(b"\x89PNG") and f"({name})" in markdown
    for sentence in verdicts(read_study(results)):
        assert sentence in text and sentence in markdown and sentence.replace("'", "&#x27;") in page
    complete = json.loads(Path("out/results.json").read_text())
    multiplier = complete["study"]["arms"]["loop"]["multipliers"][-1]["training"]
    assert f"{multiplier['value']:.2f} [{multiplier['low']:.2f}, {multiplier['high']:.2f}]" in page
    assert len(complete["runs"]) == 72
    for name in ("multipliers", "laws", "optima", "paired", "sources", "losses"):
        assert Path(f"out/{name}.csv").is_file() and r"\toprule" in Path(f"out/{name}.tex").read_text()
    assert "books" in page


def test_sources_and_tasks_are_those_of_each_arm_s_best_run_at_its_largest_budget(study):
    found = read_study(study())
    sources, tasks = (block for block in source_blocks(found) if isinstance(block, Table))
    assert sources.header == ["arm", "run", "books", "code"] and tasks.header == ["arm", "lambada acc"]
    assert [row[0] for row in sources.rows] == [row[0] for row in tasks.rows] == [*found.arms]
    for arm, by_source, by_task in zip(found.arms.values(), sources.rows, tasks.rows, strict=True):
        best = min((run for run in arm.runs if run.arm.rung == 3.2e11), key=lambda run: run.loss)
        assert by_source[1:] == [best.arm.name, f"{best.loss - 0.1:.4f}", f"{best.loss + 0.1:.4f}"]
        assert by_task[1:] == [f"{best.loss / 10:.4f}"]


def test_a_study_is_complete_once_each_budget_has_the_seeds_that_were_planned_for_it(study):
    budgets = [{"flops": 2e10}, {"flops": 8e10, "seeds": 1}]
    results = study(budgets=budgets)
    assert results.complete and {len(arm.runs) for arm in results.arms} == {1, 2}
    assert not study(budgets=budgets, finished=lambda arm, seed: arm.rung == 2e10).complete


def test_the_same_runs_give_the_same_figures(study):
    results = study()
    assert as_data(read_study(results)) == as_data(read_study(results))
