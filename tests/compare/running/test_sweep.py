"""The sweep of a ladder: trained first, and each arm keeps its best learning rate."""

import json
from types import SimpleNamespace

import pytest

from latentpt.compare import commands
from latentpt.compare.planning.folder import read_plan
from latentpt.compare.running import measure
from latentpt.compare.running.execute import Share
from latentpt.compare.running.launching import Failed

BEST = {"vanilla": 2.0, "latent": 0.5, "stages": 1.0}


@pytest.fixture
def swept(comparison, trainer, monkeypatch):
    """A ladder with a sweep whose losses are lowest at BEST; returns its configuration and the launches."""

    def pretend(plan, arm, seed):
        planned = next(a for a in plan.arms if a.name == arm)
        loss = 3.0 + abs((planned.sweep or 1.0) - BEST[planned.arm])
        record = {
            "of": measure.subject(plan, arm, seed),
            "loss": loss,
            "exact_loss": loss,
            "samples": 1,
            "texts": {},
        }
        path = measure.measurement_path(plan, arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))

    monkeypatch.setattr(commands, "measure", pretend)
    ladder = {
        "sizes": [2, 3], "budgets": [{"flops": 2e9}], "tokens_per_parameter": [0, 1e9], "sweep": [0.5, 1, 2]
    }  # fmt: skip
    return comparison(budget="training_flops", ladder=ladder), trainer


def rates(plan):
    """Arm -> its learning rates at the larger size outside the sweep."""
    return {a.arm: a.config["optimizer"]["lr"] for a in plan.arms if a.sweep is None and a.size == 3}


def test_one_command_trains_the_sweep_and_then_every_run_with_the_rate_its_arm_kept(swept):
    config, (script, launches) = swept
    commands.plan("comparison.yaml", [], script)
    commands.run("comparison.yaml", [], script)
    plan = read_plan(config.folder)
    assert plan.tuned == BEST
    found = rates(plan)
    assert found["vanilla"] == pytest.approx(2 * found["stages"])
    assert found["latent"] == pytest.approx(found["stages"] / 2)
    assert len(launches()) == 15 and all("-lr" in name for name in launches()[:9])
    commands.plan("comparison.yaml", [], script)
    assert read_plan(config.folder) == plan
    commands.run("comparison.yaml", [], script)
    assert len(launches()) == 15


def test_the_minutes_of_a_run_are_those_of_the_sweep_and_all_after_it_together(swept, monkeypatch):
    _, (script, _) = swept
    commands.plan("comparison.yaml", [], script)
    given, clock, execute = [], [0.0], commands.execute

    def slowly(plan, trainer, after, share):
        given.append(share.minutes)
        execute(plan, trainer, after)
        clock[0] += 120

    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(commands, "execute", slowly)
    commands.run("comparison.yaml", [], script, Share(minutes=5))
    assert given == [5, 3]


def test_no_run_is_trained_before_the_whole_sweep_is_finished(swept, monkeypatch):
    config, (script, launches) = swept
    commands.plan("comparison.yaml", [], script)
    monkeypatch.setenv("FAIL_AT", "4")
    with pytest.raises(Failed):
        commands.run("comparison.yaml", [], script)
    assert all("-lr" in name for name in launches())
    assert read_plan(config.folder).tuned == {}
