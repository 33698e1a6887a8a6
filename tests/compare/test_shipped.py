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
    assert [arm.name for arm in plan.arms] == list(comparison.arms)
    assert all(name in describe_plan(plan) for name in comparison.arms)


def test_the_demo_compares_the_paper_and_the_exact_form_with_vanilla():
    plan = make_plan(load_comparison(next(path for path in CONFIGS if path.stem == "demo")))
    cost = {arm.name: arm.training_flops_per_token for arm in plan.arms}
    assert cost["latent-jacobi"] > 4 * cost["vanilla"]
    assert 1.5 * cost["vanilla"] < cost["latent-stage-causal"] < 2.2 * cost["vanilla"]
