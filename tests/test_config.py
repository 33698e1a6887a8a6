"""Loading of configurations, and the sentences in which they are refused."""

import pytest

from latentpt.config import (
    ConfigError,
    Section,
    build,
    describe,
    differences,
    load_config,
    options,
    parse_override,
    to_yaml,
)
from latentpt.run import RunConfig

TRAINING = "training: {steps: 10, batch_samples: 4}\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_values_come_from_defaults_then_base_then_file_then_overrides(tmp_path):
    write(tmp_path / "base" / "most.yaml", TRAINING + "seed: 1\noptimizer: {lr: 1.0, eps: 1.0, clip: 0.5}\n")
    write(tmp_path / "base" / "more.yaml", "extends: most.yaml\noptimizer: {eps: 0.5}\n")
    file = write(tmp_path / "run.yaml", "extends: base/more.yaml\nseed: 2\n")
    config = load_config(RunConfig, file, ["optimizer.clip=0.25", "training.steps=20"])
    assert (config.seed, config.optimizer.lr, config.optimizer.eps, config.optimizer.clip) == (
        2,
        1.0,
        0.5,
        0.25,
    )
    assert (config.training.steps, config.training.batch_samples) == (20, 4)
    assert config.optimizer.weight_decay == 0.1


def test_files_that_extend_one_another_are_refused(tmp_path):
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"in a circle \(a.yaml -> b.yaml -> a.yaml\)"):
        load_config(RunConfig, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text, value",
    [
        ("3e-4", 3e-4),
        ("300e9", 300e9),
        ("1_000", 1000),
        ("null", None),
        ("[2, 3]", [2, 3]),
        ("", None),
        ("a=b", "a=b"),
    ],
)
def test_override_values_are_yaml_with_numbers_as_people_write_them(text, value):
    assert parse_override(f"section.field={text}") == (["section", "field"], value)


@pytest.mark.parametrize("override", ["optimizer.lr", "=3", "optimizer.=3", "a=[1"])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(ConfigError, match="override"):
        parse_override(override)


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer?"),
        ("optimizer.learning_rate=1", "unknown key optimizer.learning_rate; optimizer has kind, lr, matrix_lr"),
        ("optimizer.weight_decey=1", "unknown key optimizer.weight_decey; did you mean optimizer.weight_decay?"),
        ("weight_decay=1", "unknown key weight_decay; did you mean optimizer.weight_decay?"),
        ("xyz=1", "unknown key xyz; the sections are output, seed, model"),
        ("optimizer.lr=fast", "optimizer.lr must be a positive number, got 'fast'"),
        ("training.steps=1.5", "training.steps must be a whole number of at least 1 or null, got 1.5"),
        ("training.compile=perhaps", "training.compile must be true or false, got 'perhaps'"),
        ("optimizer.betas=[1]", "optimizer.betas must be [a number from 0 to below 1, a number from 0 to below 1]"),
        ("optimizer=3", "optimizer must be a section of kind, lr"),
        ("learning_rate.kind=cosin", "learning_rate.kind must be one of cosine, wsd, constant, got 'cosin'; did you mean cosine?"),
        ("schedule.kind=cosine", "the key schedule is called learning_rate"),
        ("data.train=[{path: a, wieght: 1}]", "unknown key wieght in data.train; did you mean weight?"),
        ("zero.stage=5", "zero.stage must be one of 0, 1, 2, 3, got 5"),
        ("model.hidden_size=500", "model.num_heads = 8 does not divide model.hidden_size = 500; the nearest value that does is 10"),
        ("thoughts.num_thoughts=1", "thoughts.num_thoughts = 1 with thoughts.method = vanilla"),
        ("training.tokens=5", "training.steps and training.tokens are both given"),
        ("checkpoint.keep_every=1500", "the nearest value that is one is 2000"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_override_is_said_in_one_sentence(override, message, tmp_path):
    file = write(tmp_path / "run.yaml", TRAINING)
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, file, [override])
    assert str(error.value).startswith(f"override {override}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimizer: {lrr: 1}\n" + TRAINING, "unknown key optimizer.lrr"),
        ("seed: 1\nseed: 2\n" + TRAINING, "line 2: key 'seed' appears twice"),
        ("- a\n", "a configuration is a mapping of sections, not a list"),
        ("a: [1\n", "line 2: "),
        ("extends: 3\n", "extends must name one YAML file, got 3"),
    ],
)
def test_an_error_in_a_file_names_the_file(text, message, tmp_path):
    file = write(tmp_path / "run.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, file)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)


def test_a_missing_file_or_value_is_named(tmp_path):
    write(tmp_path / "pythia-70m.yaml", TRAINING)
    with pytest.raises(ConfigError, match=r"no such configuration file; did you mean .*pythia-70m.yaml\?"):
        load_config(RunConfig, tmp_path / "pythia-71m.yaml")
    with pytest.raises(ConfigError, match=r"^training is required"):
        load_config(RunConfig, write(tmp_path / "empty.yaml", ""))


def test_impossible_combinations_name_both_keys_and_the_nearest_that_works(tmp_path):
    file = write(tmp_path / "run.yaml", TRAINING)
    for overrides, message in (
        (["data.sequence_length=4096"], "data.sequence_length = 4096 exceeds model.max_positions = 2048"),
        (["training.compile=true", "zero.stage=3"], "the nearest stage that does is 2"),
        (
            ["training.batch_samples=null", "training.batch_tokens=5000"],
            "the nearest value that is one is 4096",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(RunConfig, file, overrides)


def test_yaml_of_a_configuration_loads_back_equal(tmp_path):
    overrides = [
        "thoughts.method=latent",
        "thoughts.num_thoughts=2",
        "thoughts.refinements=[1, 4]",
        "optimizer.lr=3e-4",
    ]
    config = load_config(RunConfig, write(tmp_path / "run.yaml", TRAINING), overrides)
    assert load_config(RunConfig, write(tmp_path / "again.yaml", to_yaml(config))) == config


def test_help_lists_every_option_with_type_default_and_meaning():
    text = describe(RunConfig)
    for path, field in options(RunConfig):
        assert field.description, f"{'.'.join(path)} has no docstring"
        assert f"\n  {'.'.join(path)}  (" in f"\n{text}"
    assert "optimizer.lr  (a positive number; default 0.0003)\n      Peak learning rate." in text


def test_differences_are_dotted_keys_with_both_values():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": 5}
    assert list(differences(old, new)) == [("b.c", 2, 4), ("b.d", 3, None), ("e", None, 5)]


def test_sections_cannot_be_changed():
    class Tiny(Section):
        size: int = 1

    with pytest.raises(ValueError, match="frozen"):
        build(Tiny, {}).size = 2


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=.inf", "optimizer.lr=.nan", "optimizer.lr=true", "optimizer.lr='3'", "optimizer.lr=0", "optimizer.lr=-1",
        "optimizer.betas=[.nan, 0.9]", "optimizer.betas=[true, 0.9]", "optimizer.betas=[0.9, 1]", "optimizer.clip=.inf",
        "optimizer.clip=-1", "optimizer.weight_decay=-.inf", "optimizer.eps=0", "training.steps=010", "training.steps=1:30",
        "training.steps=true", "training.steps=0", "training.steps=-5", "training.steps=1e400", "training.steps=0x10",
        "training.steps=2026-01-01", "training.micro_batch=0", "training.compile=yes", "training.compile=1", "training.compile=on",
        "training.precision=16", "model.norm_eps=0", "model.norm_eps=-1e-5", "model.rope_theta=0", "model.rope_theta=-1",
        "model.rotary_fraction=2", "model.hidden_size=-8", "model.num_layers=1000000000", "model.hidden_size=1e12",
        "zero.bucket=0", "zero.bucket=-1", "zero.stage=true", "monitor.peak_tflops=0", "monitor.peak_tflops=-1", "monitor.every=0",
        "learning_rate.warmup=-1", "learning_rate.floor=1.5", "learning_rate.floor=.nan", "data.sequence_length=1",
        "data.sequence_length=true", "data.train=[]", "data.train=5", "data.validation={}", "seed=true", "seed=1.5", "output=2026",
        "output=[a]", "data.train=[{path: a, weight: .inf}]", "data.train=[{path: a, weight: true}]", "data.train=[{path: a, weight: 0}]",
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_one_sentence_that_names_its_key(override, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, write(tmp_path / "run.yaml", TRAINING), [override])
    assert override.split("=")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["learning_rate.warmup=11"], "a warm-up of 11 and a decay of 0 steps do not fit into a training of 10 steps"),
        (["learning_rate={kind: wsd, warmup: 0.5, decay: 0.6}"], "a warm-up of 5 and a decay of 6 steps do not fit"),
        (["training.batch_samples=1000000007", "training.micro_batch=2"], None),
        (["model.hidden_size=1000000007"], "the nearest value that does is 1"),
    ],
)  # fmt: skip
def test_large_numbers_and_long_warm_ups_are_answered_at_once(overrides, message, tmp_path):
    file = write(tmp_path / "run.yaml", TRAINING)
    with pytest.raises(ConfigError, match=message or "training.micro_batch = 1 or a global batch of"):
        config = load_config(RunConfig, file, overrides)
        config.training.accumulation(config.data.sequence_length, 1)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a: &a [*a]\n", "line 1: *a stands inside of what it names"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{y}: &{y} [{','.join(9 * ['*' + x])}]\n" for x, y in zip("abcdef", "bcdefg", strict=True)), "aliases stand for more than 100000 values"),
        ("a: !!python/object/apply:os.system [ls]\n", "the tag tag:yaml.org,2002:python/object/apply:os.system is not read"),
        ("a: !!timestamp 2020\n", "the tag tag:yaml.org,2002:timestamp is not read"),
        ("[a, b]: 1\n", "a key is a word, not a list or a mapping"),
        ("{a: 1}: 1\n", "a key is a word, not a list or a mapping"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: " + 2000 * "[", "values are nested too deeply"),
        ("a: \x00\n", "is not valid YAML"),
        ("seed: " + 5000 * "9" + "\n", "is not valid YAML"),
        ("extends: /etc/passwd\n", "extends = /etc/passwd lies outside of the folder of this file"),
        ("extends: ../other.yaml\n", "extends = ../other.yaml lies outside of the folder of this file"),
        ("2020-01-01: 1\n" + TRAINING, "unknown key 2020-01-01"),
        ("null: 1\n" + TRAINING, "unknown key null"),
    ],
)  # fmt: skip
def test_yaml_that_is_more_than_values_is_refused_before_it_is_read(text, problem, tmp_path):
    file = write(tmp_path / "run.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, file)
    assert str(error.value).startswith(str(file)) and problem in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_anchors_and_merge_keys_work(tmp_path):
    text = "training: &a {steps: 10, batch_samples: 4}\noptimizer: &b {lr: 0.5, clip: 2.0}\n"
    file = write(tmp_path / "a.yaml", text + "monitor: &m\n  every: 3\nvalidation:\n  <<: *m\n  samples: 7\n")
    config = load_config(RunConfig, file, ["optimizer.clip=3"])
    assert (config.validation.every, config.validation.samples, config.monitor.every) == (3, 7, 3)
    assert config.optimizer.clip == 3.0
    several = "validation: {<<: [*a, *b], samples: 5}\n"
    file = write(
        tmp_path / "b.yaml",
        TRAINING + "monitor: {every: &a 4}\n" + several.replace("[*a, *b]", "{every: *a}"),
    )
    assert load_config(RunConfig, file).validation.every == 4
    file = write(tmp_path / "c.yaml", "validation: &v {every: 3}\nmonitor: {<<: *v, every: 9}\n" + TRAINING)
    config = load_config(RunConfig, file)
    assert (config.monitor.every, config.validation.every) == (9, 3)
