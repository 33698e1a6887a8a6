"""Running a comparison: finished arms are left alone, interrupted ones continue."""

import pytest

from latentpt.compare.planning.folder import write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.compare.running.execute import execute
from latentpt.compare.running.launching import Failed, Interrupted, exclusive
from latentpt.config import ConfigError

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
