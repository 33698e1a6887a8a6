"""Matching arms at a budget, refusing unfair ones, writing run configurations."""

import math
import shutil
from pathlib import Path

import pytest

from latentpt.compare.planning.describe import describe_plan
from latentpt.compare.planning.folder import read_plan, write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.config import ConfigError, build, load_config
from latentpt.data.opening import open_training
from latentpt.run import RunConfig
from latentpt.thoughts.cost import training_flops_per_token
from tests.compare.conftest import LATENT, STAGES
from tests.training.small import write_text_shards


def begin(run):
    """What a training leaves first."""
    folder = Path("out/runs", run)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(Path(f"out/plan/{run}.yaml").read_text())


def by_name(plan):
    return {arm.name: arm for arm in plan.arms}


def test_equal_tokens_gives_every_arm_the_steps_of_the_base(comparison):
    plan = make_plan(comparison())
    assert {arm.tokens for arm in plan.arms} == {100 * 4 * 16}
    assert {arm.share for arm in plan.arms} == {1.0}


def test_equal_training_flops_come_out_within_one_step(comparison):
    plan = make_plan(comparison(budget="training_flops", reference="latent"))
    arms = by_name(plan)
    for arm in plan.arms:
        step = arm.training_flops_per_token * 64
        assert abs(arm.training_flops - plan.amount) <= step / 2
    assert arms["vanilla"].tokens > arms["stages"].tokens > arms["latent"].tokens == 6400


def test_training_flops_spent_on_layers_leave_tokens_to_fill_the_rest(comparison):
    config = comparison(
        budget="training_flops",
        reference="latent",
        spend_of={"vanilla": "layers"},
        arms={"latent": LATENT, "vanilla": {}},
    )
    vanilla = by_name(make_plan(config))["vanilla"]
    assert vanilla.config["model"]["num_layers"] > 4
    assert vanilla.tokens == pytest.approx(6400, rel=0.1)
    assert vanilla.share == pytest.approx(1, abs=0.01)


def test_equal_inference_flops_give_vanilla_about_twice_the_layers_of_one_thought(comparison):
    config = comparison(
        budget="inference_flops",
        reference="stages",
        spend="layers",
        tolerance=0.2,
        arms={"stages": STAGES, "vanilla": {}},
    )
    vanilla = by_name(make_plan(config))["vanilla"]
    assert vanilla.config["model"]["num_layers"] == 4
    assert vanilla.tokens == 6400


def test_width_grows_by_whole_heads_and_takes_the_embedding_scale_along(comparison):
    config = comparison(
        budget="inference_flops",
        reference="stages",
        spend="width",
        tolerance=0.3,
        arms={"stages": STAGES, "vanilla": {}},
    )
    model = by_name(make_plan(config))["vanilla"].config
    width = model["model"]["hidden_size"]
    assert width > 32 and width == 8 * model["model"]["num_heads"]
    assert model["thoughts"]["embed_scale"] == pytest.approx(math.sqrt(2.5 * width))


def test_an_arm_that_cannot_meet_the_budget_is_refused(comparison):
    config = comparison(
        budget="inference_flops",
        reference="stages",
        spend="layers",
        tolerance=1e-6,
        arms={"stages": STAGES, "vanilla": {}},
    )
    with pytest.raises(ConfigError, match=r"arm vanilla uses 0\.\d\d of the inference FLOPs per token"):
        make_plan(config)


def test_equal_seconds_follow_the_measured_speeds(comparison):
    plan = make_plan(
        comparison(budget="seconds", amount=10), {"vanilla": 6400.0, "latent": 1280.0, "stages": 3200.0}
    )
    assert [arm.tokens for arm in plan.arms] == [64000, 12800, 32000]


def test_a_curriculum_is_matched_over_all_its_phases(comparison):
    """Half of the reference's steps cost as much as vanilla, so the arm affords more steps than without the phase."""
    phased = {"thoughts": {**LATENT["thoughts"], "curriculum": [{"until_step": 50, "num_thoughts": 0}]}}
    arms = by_name(
        make_plan(
            comparison(budget="training_flops", arms={"latent": LATENT, "phased": phased, "vanilla": {}})
        )
    )
    vanilla, latent = (arms[name].training_flops_per_token for name in ("vanilla", "latent"))
    steps = arms["phased"].steps
    spent = 50 * vanilla + (steps - 50) * latent
    assert spent == pytest.approx(100 * latent, rel=0.01)


def test_a_curriculum_cannot_be_matched_in_seconds(comparison):
    phased = {"thoughts": {**LATENT["thoughts"], "curriculum": [{"until_step": 50, "num_thoughts": 0}]}}
    with pytest.raises(ConfigError, match="compare it by training_flops"):
        make_plan(comparison(budget="seconds", amount=9, arms={"phased": phased}), {"phased": 1000.0})


def test_every_arm_gets_the_same_embedding_scale(comparison):
    plan = make_plan(comparison())
    assert {arm.config["thoughts"]["embed_scale"] for arm in plan.arms} == {math.sqrt(2.5 * 32)}


def test_an_embedding_scale_of_an_arms_own_is_refused_unless_named(comparison):
    arms = {"vanilla": {}, "latent": {"thoughts": {**LATENT["thoughts"], "embed_scale": 1.0}}}
    with pytest.raises(ConfigError, match=r"arm latent has thoughts.embed_scale = 1.0, but .* sqrt\(2.5 d\)"):
        make_plan(comparison(arms=arms))
    plan = make_plan(comparison(arms=arms, differ=["thoughts.embed_scale"]))
    assert plan.differs["thoughts.embed_scale"] == {"vanilla": None, "latent": 1.0}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optimizer", "weight_decay", 0.0),
        ("model", "norm_eps", 0.1),
        ("data", "sequence_length", 8),
        ("learning_rate", "warmup", 0.5),
    ],
)
def test_a_difference_in_what_must_be_equal_is_refused_unless_named(comparison, section, key, value):
    arms = {"vanilla": {}, "latent": {**LATENT, section: {key: value}}}
    with pytest.raises(ConfigError, match=f"arm latent has {section}.{key}"):
        make_plan(comparison(arms=arms))
    plan = make_plan(comparison(arms=arms, differ=[f"{section}.{key}"]))
    assert plan.differs[f"{section}.{key}"]["latent"] == value


def test_the_plan_names_every_key_in_which_arms_differ_and_no_other(comparison):
    plan = make_plan(comparison())
    assert set(plan.differs) == {
        "thoughts.method", "thoughts.num_thoughts", "thoughts.visibility", "thoughts.refinements",
    }  # fmt: skip
    assert plan.differs["thoughts.refinements"] == {"vanilla": 3, "latent": 1, "stages": 3}
    assert "thoughts.visibility" in describe_plan(plan)


def test_written_run_configurations_load_and_differ_between_seeds_in_the_seed_alone(comparison):
    plan = make_plan(comparison(seeds=[0, 7]))
    write_plan(plan)
    runs = [load_config(RunConfig, plan.config_path("latent", seed)) for seed in (0, 7)]
    assert [run.seed for run in runs] == [0, 7]
    assert [run.output for run in runs] == ["out/runs/latent-seed0", "out/runs/latent-seed7"]
    assert runs[0].model_copy(update={"seed": 7, "output": runs[1].output}) == runs[1]
    assert runs[0].steps == 100
    assert read_plan(Path("out")) == plan


def test_a_plan_that_contradicts_a_run_already_made_is_refused(comparison):
    write_plan(make_plan(comparison()))
    begin("latent-seed0")
    before = Path("out/plan/latent-seed0.yaml").read_text()
    changed = comparison(
        arms={"vanilla": {}, "latent": {"thoughts": {**LATENT["thoughts"], "refinements": 2}}}
    )
    with pytest.raises(ConfigError, match="out/runs/latent-seed0 holds a run of another plan"):
        write_plan(make_plan(changed))
    assert Path("out/plan/latent-seed0.yaml").read_text() == before
    write_plan(make_plan(comparison(seeds=[0, 1])))  # more seeds contradict nothing


def test_a_run_is_told_from_another_plan_by_what_it_was_made_with_even_where_the_plan_is_gone(comparison):
    write_plan(make_plan(comparison()))
    begin("latent-seed0")
    shutil.rmtree("out/plan")
    Path("out/plan.json").unlink()
    changed = comparison(arms={"vanilla": {}, "latent": STAGES})
    with pytest.raises(ConfigError, match=r"thoughts.visibility was causal there and would be stage_causal"):
        write_plan(make_plan(changed))


def test_a_plan_on_other_data_than_that_of_its_runs_is_refused(comparison):
    write_text_shards(Path("data"), 3000)
    write_plan(make_plan(comparison()))
    begin("latent-seed0")
    write_plan(make_plan(comparison()))  # the same data contradicts nothing
    shutil.rmtree("data")
    write_text_shards(Path("data"), 4000)
    with pytest.raises(ConfigError, match="holds runs on other data"):
        write_plan(make_plan(comparison()))


@pytest.mark.parametrize("spend", ["layers", "width"])
def test_arms_that_spend_size_are_sized_at_the_tokens_of_the_reference(comparison, spend):
    """Twice the base's FLOPs give the reference twice the base's tokens, and the others theirs."""
    half = make_plan(comparison(budget="training_flops", arms={"vanilla": {}})).amount
    config = comparison(
        budget="training_flops", amount=2 * half, spend_of={"plain": spend}, arms={"vanilla": {}, "plain": {}}
    )
    arms = by_name(make_plan(config))
    assert arms["plain"].config["model"] == arms["vanilla"].config["model"]
    assert arms["plain"].tokens == arms["vanilla"].tokens == 2 * 6400


def test_a_triple_match_has_the_reference_s_flops_parameters_and_kv_bytes(comparison):
    loop = {"thoughts": {"method": "loop", "num_thoughts": 1}}
    arms = {"vanilla": {}, "loop": loop, "stages": STAGES}
    spend_of = {"loop": "triple", "stages": "triple"}
    plan = make_plan(comparison(budget="training_flops", spend_of=spend_of, arms=arms))
    vanilla, *others = plan.arms
    for arm in others:
        assert arm.kv_bytes_per_token == vanilla.kv_bytes_per_token
        assert arm.parameters == pytest.approx(vanilla.parameters, rel=0.02)
        assert arm.training_flops == pytest.approx(vanilla.training_flops, rel=0.01)
        for key in ("num_layers", "hidden_size"):
            assert arm.config["model"][key] == vanilla.config["model"][key]


def test_a_triple_match_that_heads_do_not_allow_is_refused(comparison):
    three = {"thoughts": {"method": "loop", "num_thoughts": 2}}
    config = comparison(
        budget="training_flops", spend_of={"loop": "triple"}, arms={"vanilla": {}, "loop": three}
    )
    with pytest.raises(ConfigError, match=r"arm loop comes to \d\.\d\d of the KV bytes per token of vanilla"):
        make_plan(config)


def test_missing_shards_and_several_epochs_are_said(comparison):
    assert "Data is missing, and `run` needs it: data/train" in describe_plan(make_plan(comparison()))
    write_text_shards(Path("data"), 3000)
    plan = make_plan(comparison())
    epochs = 6400 / open_training(build(RunConfig, plan.arms[0].config).data).num_tokens
    assert f"vanilla {epochs:.2f}, latent {epochs:.2f}, stages {epochs:.2f}." in describe_plan(plan)


def test_flops_of_the_plan_are_those_of_the_flop_module(comparison):
    plan = make_plan(comparison())
    for arm in plan.arms:
        run = RunConfig.model_validate(arm.config)
        assert arm.training_flops_per_token == training_flops_per_token(run.model, run.thoughts, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms is empty"),
        ({"reference": "vanila"}, "did you mean vanilla"),
        ({"spend_of": {"latnt": "layers"}}, "did you mean latent"),
        ({"arms": {"a/b": {}}}, "letters, digits"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"budget": "inference_flops"}, "tokens do not change inference FLOPs"),
        ({"budget": "flops"}, "budget must be one of"),
        ({"amount": math.nan}, "amount must be a positive number or null, got nan"),
        ({"amount": math.inf}, "amount must be a positive number or null, got inf"),
        ({"spend": "triple"}, "set budget to training_flops"),
        ({"tolerance": 0}, "tolerance must be a positive number"),
        ({"processes": 3}, "arm vanilla: a global batch of 4 samples cannot be divided .* on 3 ranks"),
        ({"base": "bse.yaml"}, "bse.yaml is not a file"),
        ({"arms": {"latent": {"thoughts": {"metod": "latent"}}}}, "did you mean thoughts.method"),
    ],
)
def test_a_comparison_that_cannot_work_is_refused_in_one_sentence(comparison, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_plan(comparison(**changes))
    assert "\n" not in str(error.value)
