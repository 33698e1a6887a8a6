"""The speed of an arm: what a training can expect, from few steps of many speeds."""

import random

import pytest

from latentpt.compare.config import load_comparison
from latentpt.compare.planning.describe import describe_plan
from latentpt.compare.planning.folder import write_plan
from latentpt.compare.planning.plan import make_plan, resolve
from latentpt.compare.running.execute import execute
from latentpt.compare.running.launching import Interrupted
from latentpt.compare.running.speed import (
    expected_seconds,
    expected_speed,
    measure_plan,
    measure_speeds,
    probe_config,
)
from latentpt.config import ConfigError
from latentpt.thoughts.cost import schedule_cost
from latentpt.thoughts.registry import make_method
from tests.compare.conftest import LATENT, STAGES


def drawing(**thoughts):
    """An arm with one thought whose number of refinements is not fixed."""
    return {"thoughts": {**LATENT["thoughts"], **thoughts}}


def first_steps(config):
    """What is trained to know the speed of the arm `latent`."""
    return probe_config(config, "latent", resolve(config, "latent"))


def steps(run, seed, count=30, schedules=None):
    """Metrics of single steps: the schedules that a training draws, each as slow as its FLOPs, a bit of everything else."""
    method, chance = make_method(run.thoughts, run.model), random.Random(seed)
    lines, tokens, flops = [], 0, 0.0
    for step in range(count):
        schedule = schedules[step] if schedules else method.training_schedule(seed, step)
        cost = schedule_cost(run.model, method, schedule, run.data.sequence_length).total
        held_up = (20 if step < 3 else 1) * (3 if chance.random() < 0.1 else 1)
        tokens, flops = tokens + 64, flops + 64 * cost
        speed = 1 / (seconds(cost) * chance.uniform(0.97, 1.03) * held_up)
        lines.append({"tokens": tokens, "training_flops": flops, "tokens_per_second": speed})
    return lines


def seconds(cost):
    """What a token takes in the trainings of these tests: a share that every step has, and its FLOPs."""
    return 1e-4 + cost * 1e-9


@pytest.mark.parametrize(
    "thoughts",
    [
        {"refinements": [0, 1]},
        {"refinements": [0, 4]},
        {"refinements": [1, 4], "draw": "inverse_cost"},
        {"refinements": [0, 4], "bptt_passes": 2},
        {"refinements": [0, 3], "solver": "gauss_seidel"},
        {"refinements": 2},
    ],
    ids=str,
)
def test_the_expected_speed_is_that_of_the_mean_step_whatever_few_steps_have_drawn(thoughts, comparison):
    run = first_steps(comparison(arms={"latent": drawing(**thoughts)}))
    method = make_method(run.thoughts, run.model)
    mean = sum(
        chance * seconds(schedule_cost(run.model, method, schedule, 16).total)
        for chance, schedule in method.choices(0)
    )
    for seed in range(10):
        assert expected_speed(run, steps(run, seed)) == pytest.approx(1 / mean, rel=0.025)


def test_steps_that_drew_one_number_of_several_are_too_few(comparison):
    run = first_steps(comparison(arms={"latent": drawing(refinements=[0, 3])}))
    alike = [make_method(run.thoughts, run.model).schedule(2)] * 8
    with pytest.raises(ConfigError, match=r"the 6 probed steps .* drew one number .* raise probe_steps"):
        expected_speed(run, steps(run, 0, 8, alike))


def test_refinements_that_adapt_are_planned_by_the_mean_of_what_was_measured_and_the_plan_says_so(comparison):
    arms = {"vanilla": {}, "latent": drawing(refinements=[0, 4], residual_target=0.1)}
    config = comparison(budget="seconds", amount=10, arms=arms)
    run = first_steps(config)
    method = make_method(run.thoughts, run.model)
    lines = steps(run, 0, 30, [method.schedule(4)] * 12 + [method.schedule(0)] * 18)
    speed = expected_speed(run, lines)
    assert 1 / speed == pytest.approx(sum(1 / line["tokens_per_second"] for line in lines[7:]) / 23)
    text = describe_plan(make_plan(config, {"vanilla": 1000.0, "latent": speed}))
    assert "Arm latent adapts its refinements to residuals" in text and "the mean of the probed steps" in text


def test_refinements_that_adapt_cannot_be_matched_in_flops(comparison):
    arms = {"vanilla": {}, "latent": drawing(refinements=[0, 4], residual_target=0.1)}
    with pytest.raises(
        ConfigError, match=r"arm latent has thoughts.residual_target, .* compare it by seconds or tokens"
    ):
        make_plan(comparison(budget="training_flops", arms=arms))


def test_speeds_are_measured_once_an_arm(comparison, trainer):
    script, launches = trainer
    config = comparison(budget="seconds", amount=10)
    speeds = measure_speeds(config, script)
    assert speeds == pytest.approx({"vanilla": 1000, "latent": 500, "stages": 500}, rel=0.01)
    assert measure_speeds(load_comparison("comparison.yaml"), script) == speeds
    assert len(launches()) == 3


def test_the_speed_of_an_arm_that_changed_is_measured_again(comparison, trainer):
    script, launches = trainer
    measure_speeds(comparison(budget="seconds", amount=10), script)
    changed = {
        "vanilla": {},
        "latent": LATENT,
        "stages": {"thoughts": {**STAGES["thoughts"], "num_thoughts": 2}},
    }
    speeds = measure_speeds(comparison(budget="seconds", amount=10, arms=changed), script)
    assert speeds["stages"] == pytest.approx(1000 / 3, rel=0.01)
    assert launches() == ["vanilla", "latent", "stages", "stages"]


def test_a_probe_that_was_stopped_is_not_a_speed(comparison, trainer, monkeypatch):
    monkeypatch.setenv("STOP_AT", "2")
    with pytest.raises(Interrupted, match="the speed of arm latent is not measured yet"):
        measure_speeds(comparison(budget="seconds", amount=10), trainer[0])


def test_the_time_of_a_plan_is_known_from_finished_runs_and_from_probes(comparison, trainer, measured):
    ladder = {"sizes": [2, 3], "budgets": [{"flops": 2e9}, {"flops": 4e9}], "tokens_per_parameter": [0, 1e9]}
    plan = make_plan(comparison(budget="training_flops", ladder=ladder))
    write_plan(plan)
    assert expected_seconds(plan) == {}
    measure_plan(plan, trainer[0])
    assert len(trainer[1]()) == 6  # every arm at every size
    seconds = expected_seconds(plan)
    for arm in plan.arms:
        speed = 1000 / (2 if arm.arm == "latent" or arm.arm == "stages" else 1)
        assert seconds[arm.name] == pytest.approx(arm.tokens / speed, rel=0.02)
    execute(plan, trainer[0], lambda *_: None)
    first = plan.arms[0]  # both of its runs say that they took ten seconds for thrice their tokens
    tokens = sum(3 * arm.tokens for arm in plan.arms if (arm.arm, arm.size) == (first.arm, first.size))
    assert expected_seconds(plan)[first.name] == pytest.approx(first.tokens / tokens * 20, rel=0.01)
    assert "training one after another" in describe_plan(plan, expected_seconds(plan))
