"""Running a comparison: finished arms are left alone, interrupted ones continue."""

import pytest

from latentpt.compare.config import load_comparison
from latentpt.compare.execute import execute, measure_speeds
from latentpt.compare.launching import Failed, Interrupted, exclusive
from latentpt.compare.plan import make_plan, write_plan
from latentpt.config import ConfigError
from tests.compare.conftest import LATENT, STAGES

ROUND = ["vanilla-seed0", "latent-seed0", "stages-seed0"]


@pytest.fixture
def plan(comparison):
    planned = make_plan(comparison(seeds=[0, 1]))
    write_plan(planned)
    return planned


def test_every_arm_is_run_once_a_seed_in_whole_rounds_and_measured(plan, trainer, measured):
    script, launches = trainer
    pretend, asked = measured
    execute(plan, script, pretend)
    assert launches() == ROUND + [name.replace("0", "1") for name in ROUND]
    assert asked == [(name.split("-")[0], int(name[-1])) for name in launches()]


def test_a_finished_comparison_is_not_run_again(plan, trainer, measured):
    script, launches = trainer
    execute(plan, script, measured[0])
    execute(plan, script, measured[0])
    assert len(launches()) == 6


def test_an_interrupted_comparison_continues_with_the_arm_that_stopped(plan, trainer, measured, monkeypatch):
    script, launches = trainer
    monkeypatch.setenv("STOP_AT", "2")
    with pytest.raises(Interrupted):
        execute(plan, script, measured[0])
    assert launches() == ROUND[:2]
    execute(plan, script, measured[0])
    assert launches()[2:] == ["latent-seed0", "stages-seed0", "vanilla-seed1", "latent-seed1", "stages-seed1"]


def test_a_training_that_fails_keeps_no_other_from_being_trained_and_is_tried_again(
    plan, trainer, measured, monkeypatch
):
    script, launches = trainer
    monkeypatch.setenv("FAIL_AT", "2")
    with pytest.raises(Failed, match=r"1 of 6 trainings failed: latent-seed0"):
        execute(plan, script, measured[0])
    assert len(launches()) == 6
    execute(plan, script, measured[0])
    assert launches()[6:] == ["latent-seed0"]


def test_two_runs_of_one_comparison_at_once_are_refused(plan, trainer, measured):
    with exclusive(plan.comparison.folder), pytest.raises(ConfigError, match="being run by another process"):
        execute(plan, trainer[0], measured[0])


def test_speeds_are_measured_once_an_arm(comparison, trainer):
    script, launches = trainer
    config = comparison(budget="seconds", amount=10)
    speeds = measure_speeds(config, script)
    assert speeds == {"vanilla": 1000.0, "latent": 500.0, "stages": 500.0}
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
    assert speeds["stages"] == pytest.approx(1000 / 3)
    assert launches() == ["vanilla", "latent", "stages", "stages"]


def test_a_probe_that_was_stopped_is_not_a_speed(comparison, trainer, monkeypatch):
    monkeypatch.setenv("STOP_AT", "2")
    with pytest.raises(Interrupted, match="the speed of arm latent is not measured yet"):
        measure_speeds(comparison(budget="seconds", amount=10), trainer[0])
