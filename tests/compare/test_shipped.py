"""The comparisons that come with the project."""

from pathlib import Path

import pytest

from latentpt.compare.config import load_comparison
from latentpt.compare.planning.describe import describe_plan
from latentpt.compare.planning.plan import make_plan

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "comparisons").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_comparison_can_be_planned(path):
    comparison = load_comparison(path)
    speeds = dict.fromkeys(comparison.arms, 1000.0) if comparison.budget == "seconds" else None
    plan = make_plan(comparison, speeds)
    assert {arm.arm for arm in plan.arms} == set(comparison.arms)
    assert all(name in describe_plan(plan) for name in comparison.arms)


@pytest.mark.parametrize("name", ["ladder-cpu", "ladder-gpu"])
def test_every_arm_of_a_shipped_ladder_has_enough_runs_for_a_law(name):
    """At the smallest budget three sizes of the plain decoder, so that its isoFLOP curves have a shape."""
    plan = make_plan(load_comparison(next(path for path in CONFIGS if path.stem == name)))
    runs = [arm for arm in plan.arms if arm.sweep is None]
    for arm in plan.comparison.arms:
        mine = [run for run in runs if run.arm == arm]
        assert len(mine) >= 7 and len({run.size for run in mine}) >= 3
    least = [run for run in runs if run.arm == "vanilla" and run.rung == runs[0].rung]
    assert len(least) >= 3
    budgets = [rung.flops for rung in plan.comparison.ladder.budgets]
    assert budgets[-1] >= 16 * budgets[0]


def test_the_demo_compares_the_paper_and_the_exact_form_with_vanilla():
    plan = make_plan(load_comparison(next(path for path in CONFIGS if path.stem == "demo")))
    cost = {arm.name: arm.training_flops_per_token for arm in plan.arms}
    assert cost["latent-jacobi"] > 4 * cost["vanilla"]
    assert 1.5 * cost["vanilla"] < cost["latent-stage-causal"] < 2.2 * cost["vanilla"]
