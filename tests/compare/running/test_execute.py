"""Running a comparison: finished arms are left alone, interrupted ones continue."""

from pathlib import Path

import pytest

from latentpt.compare.planning.folder import write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.compare.running.execute import Share, execute
from latentpt.compare.running.launching import Busy, Failed, Interrupted, exclusive
from latentpt.config import ConfigError, to_yaml

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


def test_a_run_that_another_process_trains_is_left_to_it(plan, trainer, measured):
    with exclusive(plan.comparison.folder / "claims" / "latent-seed0"):
        with pytest.raises(Busy, match="1 of 6 runs are being trained by other processes"):
            execute(plan, trainer[0], measured[0])
        assert "latent-seed0" not in trainer[1]() and len(trainer[1]()) == 5
    execute(plan, trainer[0], measured[0])
    assert trainer[1]()[5:] == ["latent-seed0"]


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_tasks_of_an_array_train_every_run_once_between_them(plan, trainer, measured, tasks):
    for task in range(tasks):
        execute(plan, trainer[0], measured[0], Share(task=(task, tasks)))
    assert sorted(trainer[1]()) == sorted(plan.run_name(arm.name, seed) for arm, seed in plan.jobs())


def test_several_at_once_train_every_run_once_and_in_the_plan_s_order(plan, trainer, measured):
    script, launches = trainer
    execute(plan, script, measured[0], Share(at_once=3))
    assert sorted(launches()) == sorted(plan.run_name(arm.name, seed) for arm, seed in plan.jobs())
    assert sorted(launches()[:3]) == sorted(ROUND)


def test_what_a_training_says_is_kept_and_named_where_it_fails(plan, trainer, measured, monkeypatch, capsys):
    trainer[0].write_text(trainer[0].read_text() + "\nprint('hello')\nprint('world', file=sys.stderr)\n")
    monkeypatch.setenv("FAIL_AT", "2")
    with pytest.raises(Failed):
        execute(plan, trainer[0], measured[0])
    assert "out/logs/latent-seed0.log" in capsys.readouterr().err
    assert {"hello", "world"} == set(Path("out/logs/stages-seed0.log").read_text().split())


@pytest.mark.parametrize("at_once", [1, 3])
def test_threads_that_are_asked_for_are_those_of_every_training_however_many_run(
    comparison, trainer, measured, monkeypatch, at_once
):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    trainer[0].write_text(trainer[0].read_text() + "\nprint(os.environ['OMP_NUM_THREADS'])\n")
    plan = make_plan(comparison(threads=2))
    write_plan(plan)
    execute(plan, trainer[0], measured[0], Share(at_once=at_once))
    assert {path.read_text() for path in Path("out/logs").iterdir()} == {"2\n"}


def test_a_run_folder_of_another_configuration_is_not_trained_on(plan, trainer, measured):
    folder = plan.run_folder("latent", 0)
    folder.mkdir(parents=True)
    another = plan.run_config(plan.arms[2], 0)
    (folder / "config.yaml").write_text(to_yaml(another))
    with pytest.raises(ConfigError, match="latent-seed0 holds a run of another plan"):
        execute(plan, trainer[0], measured[0])
    assert "latent-seed0" not in trainer[1]()
