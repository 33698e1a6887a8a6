"""A ladder: which runs it has, in which order, by which rules."""

import math
import re

import pytest

from latentpt.compare.planning.describe import describe_plan
from latentpt.compare.planning.folder import read_plan, write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.config import ConfigError
from tests.compare.conftest import LATENT, STAGES

LADDER = {"sizes": [2, 3, 4], "budgets": [{"flops": 2e9}, {"flops": 8e9}], "tokens_per_parameter": [0, 1e9]}
ARMS = {"stages": STAGES, "vanilla": {}}


@pytest.fixture
def climb(comparison):
    """A function that plans a ladder with some of its keys changed."""

    def make(arms=ARMS, seeds=(0, 1), **changes):
        ladder = {**LADDER, **changes}
        values = {"arms": arms, "budget": "training_flops", "reference": "vanilla", "seeds": [*seeds]}
        return make_plan(comparison(ladder=ladder, **values))

    return make


def test_every_arm_is_planned_at_every_size_for_every_budget_within_a_step(climb):
    plan = climb()
    assert {(a.arm, a.size, a.rung) for a in plan.arms} == {
        (arm, size, flops) for arm in ARMS for size in (2, 3, 4) for flops in (2e9, 8e9)
    }
    for arm in plan.arms:
        assert abs(arm.training_flops - arm.rung) <= arm.training_flops_per_token * 64 / 2
        assert len({a.name for a in plan.arms}) == len(plan.arms)


def test_the_cheapest_budget_comes_first_then_all_seeds_then_sizes_from_the_middle(climb):
    jobs = climb().jobs()
    assert [arm.rung for arm, _ in jobs] == [2e9] * 12 + [8e9] * 12
    assert [seed for _, seed in jobs[:12]] == [0] * 6 + [1] * 6
    assert [arm.size for arm, _ in jobs[:6]] == [3, 3, 2, 2, 4, 4]
    assert [arm.arm for arm, _ in jobs[:2]] == ["vanilla", "stages"]


def test_a_budget_may_have_fewer_seeds(climb):
    jobs = climb(budgets=[{"flops": 2e9}, {"flops": 8e9, "seeds": 1}]).jobs()
    assert {seed for arm, seed in jobs if arm.rung == 2e9} == {0, 1}
    assert {seed for arm, seed in jobs if arm.rung == 8e9} == {0}


def test_one_dial_sets_depth_and_width_and_the_embedding_scale_follows(climb):
    for arm in climb(aspect=16).arms:
        model = arm.config["model"]
        assert model["num_layers"] == arm.size and model["hidden_size"] == 16 * arm.size
        assert model["hidden_size"] / model["num_heads"] == 8
        assert arm.config["thoughts"]["embed_scale"] == pytest.approx(math.sqrt(2.5 * model["hidden_size"]))


def test_iso_width_and_iso_depth_ladders_hold_what_they_say(climb):
    for arm in climb(hold="width").arms:
        assert arm.config["model"]["hidden_size"] == 32 and arm.config["model"]["num_layers"] == arm.size
    for arm in climb(hold="depth").arms:
        assert arm.config["model"]["num_layers"] == 2 and arm.config["model"]["num_heads"] == arm.size


def test_the_learning_rate_follows_the_width_by_the_stated_power(climb):
    for arm in climb(lr_power=1.0).arms:
        width = arm.config["model"]["hidden_size"]
        assert arm.config["optimizer"]["lr"] == pytest.approx(3e-4 * 32 / width)
        assert arm.config["optimizer"]["weight_decay"] == 0.1
    assert {arm.config["optimizer"]["lr"] for arm in climb(lr_power=0).arms} == {3e-4}


def test_the_time_scale_of_weight_decay_is_that_of_the_base_in_every_run(climb):
    for arm in climb(weight_decay="timescale").arms:
        optimizer = arm.config["optimizer"]
        assert optimizer["lr"] * optimizer["weight_decay"] * arm.steps == pytest.approx(3e-4 * 0.1 * 100)


def test_runs_with_too_few_or_too_many_tokens_for_a_parameter_are_left_out(climb):
    every = climb().arms
    kept = climb(tokens_per_parameter=[0.1, 0.4]).arms
    assert [a.name for a in kept] == [a.name for a in every if 0.1 <= a.tokens_per_parameter <= 0.4]
    assert 0 < len(kept) < len(every)
    with pytest.raises(ConfigError, match="leaves no run; the runs have"):
        climb(tokens_per_parameter=[1e6, 1e7])


def test_every_run_is_validated_as_often(climb):
    for arm in climb(points=4).arms:
        assert arm.config["validation"]["every"] == -(-arm.steps // 4)


def test_parameters_are_counted_outside_embeddings_and_head(climb):
    arm = climb().arms[0]
    model = arm.config["model"]
    tables = 2 * model["vocab_size"] * model["hidden_size"]
    assert arm.body_parameters == arm.parameters - tables
    assert arm.repeated_parameters == arm.body_parameters - model["hidden_size"]  # the final norm
    assert {a.slots for a in climb().arms if a.arm == "stages"} == {2}


def test_the_sweep_comes_first_and_what_it_chose_is_every_run_s(climb, comparison):
    plan = climb(sweep=[0.5, 2.0])
    assert [(a.arm, a.sweep, a.size, a.rung, a.seeds) for a in plan.arms[:4]] == [
        (arm, factor, 3, 2e9, [0]) for factor in (0.5, 2.0) for arm in ("vanilla", "stages")
    ]
    assert [arm.sweep for arm, _ in plan.jobs()[:5]] == [0.5, 0.5, 2.0, 2.0, None]
    assert "for the sweep of the learning rate" in describe_plan(plan)
    tuned = make_plan(plan.comparison, tuned={"vanilla": 1.0, "stages": 2.0})
    rates = {(a.arm, a.size): a.config["optimizer"]["lr"] for a in tuned.arms if a.sweep is None}
    for size in (2, 3, 4):
        assert rates["stages", size] == pytest.approx(2 * rates["vanilla", size])


def test_a_ladder_is_written_read_and_described(climb):
    plan = climb()
    write_plan(plan)
    assert read_plan(plan.comparison.folder) == plan
    text = describe_plan(plan, {arm.name: 60.0 for arm in plan.arms})
    assert re.search(r"24 runs, 1[12]\d G FLOPs, 24.0 min of training one after another", text)
    assert "learning rates go with width to the power of -0.5" in text
    assert all(arm.name in text for arm in plan.arms)
    assert set(plan.differs["thoughts.method"]) == set(ARMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder": {**LADDER, "sizes": [3, 2]}}, "ladder.sizes must be growing numbers"),
        ({"ladder": {**LADDER, "budgets": [{"flops": math.nan}]}}, "ladder.budgets must be a list of"),
        ({"ladder": {**LADDER, "tokens_per_parameter": [9, 3]}}, "low < high"),
        ({"ladder": {**LADDER, "served": [0]}}, "ladder.served must be a list of a positive number"),
        ({"ladder": {**LADDER, "draws": 3}}, "ladder.draws must be a whole number from 100 to 1000000"),
        (
            {"ladder": {**LADDER, "budgets": [{"flops": 1e9, "seeds": 4}]}},
            "asks for 4 seeds, but seeds has 1",
        ),
        ({"ladder": LADDER, "budget": "tokens"}, "set budget to training_flops"),
        ({"ladder": LADDER, "amount": 1e9}, "amount to null"),
        ({"ladder": LADDER, "spend": "layers"}, "arms of a ladder spend tokens"),
        ({"ladder": {**LADDER, "size": [2]}}, "unknown key"),
    ],
)
def test_a_ladder_that_cannot_work_is_refused_in_one_sentence(comparison, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_plan(comparison(**{"budget": "training_flops", "arms": {"latent": LATENT}, **changes}))
    assert "\n" not in str(error.value)
