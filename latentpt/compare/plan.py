"""From a comparison's configuration to one run configuration per arm and seed, matched at the budget.

What is held equal is checked, not assumed: arms may differ in the size of the model, in their thoughts and in how the
work is cut into micro-batches; any other difference is refused unless the comparison names it under `differ`. The
embedding scale, which methods choose for themselves, is set to sqrt(2.5 d) in every arm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from latentpt.compare.config import UNITS, ComparisonConfig, as_overrides
from latentpt.compare.match import Use, count_parameters, nearest_size, steps_within
from latentpt.config import ConfigError, Section, build, differences, load_config, to_yaml
from latentpt.files import write_text
from latentpt.pages.tables import quantity, text_table
from latentpt.run import RunConfig
from latentpt.thoughts.cost import inference_flops_per_token, training_flops_per_token

FREE_KEYS = (
    "thoughts.",
    "model.num_layers",
    "model.hidden_size",
    "model.num_heads",
    "model.num_kv_heads",
    "model.head_size",
    "model.intermediate_size",
    "training.micro_batch",
    "training.checkpoint_activations",
)
EMBED_SCALE = "thoughts.embed_scale"


class PlannedArm(Section):
    """One arm at its matched size and length."""

    name: str
    """The arm's name in the comparison."""
    parameters: int
    """Trainable parameters."""
    training_flops_per_token: float
    """FLOPs per token of training, forward and backward."""
    inference_flops_per_token: float
    """FLOPs per token of exact decoding."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Training tokens."""
    share: float
    """What the arm uses of the budget; 1 is exact."""
    config: dict[str, Any]
    """The resolved run configuration, without seed and folder."""

    @property
    def training_flops(self) -> float:
        """FLOPs of the whole training."""
        return self.training_flops_per_token * self.tokens


class Plan(Section):
    """A comparison, resolved."""

    comparison: ComparisonConfig
    """What was asked for."""
    amount: float
    """Size of the budget in its unit."""
    arms: list[PlannedArm]
    """The arms in their order."""
    differs: dict[str, dict[str, Any]]
    """Dotted key -> arm -> value, for every key in which arms differ."""

    def run_name(self, arm: str, seed: int) -> str:
        """Name of the run of one arm and seed, in the plan/ and runs/ folders."""
        return f"{arm}-seed{seed}"

    def config_path(self, arm: str, seed: int) -> Path:
        """The run configuration that the plan wrote."""
        return self.comparison.folder / "plan" / f"{self.run_name(arm, seed)}.yaml"

    def run_folder(self, arm: str, seed: int) -> Path:
        """The folder in which that run trains."""
        return self.comparison.folder / "runs" / self.run_name(arm, seed)


def make_plan(comparison: ComparisonConfig, speeds: Mapping[str, float] | None = None) -> Plan:
    """Resolve every arm and match it at the budget; `speeds` (tokens per second) are needed for a budget in seconds.

    Raises:
        ConfigError: an arm that differs in what must be equal, that cannot meet the budget within the tolerance, or whose
            batch cannot be divided among `processes`.
    """
    runs = {name: resolve(comparison, name) for name in comparison.arms}
    refuse_unfair(comparison, runs)
    for name, run in runs.items():
        try:
            run.training.accumulation(run.data.sequence_length, comparison.processes or 1)
        except ValueError as error:
            raise ConfigError(f"arm {name}: {error}") from None
    speeds, reference = speeds or {}, comparison.reference_arm
    base = runs[reference]
    amount = comparison.amount or make_use(comparison, reference, base, speeds)(base.steps)
    arms = [match(comparison, name, run, amount, speeds) for name, run in runs.items()]
    return Plan(comparison=comparison, amount=amount, arms=arms, differs=differing(arms, reference))


def resolve(comparison: ComparisonConfig, arm: str) -> RunConfig:
    """The base with the arm's own values and the common embedding scale, before it is matched."""
    overrides = as_overrides(comparison.arms[arm])
    run = load_config(RunConfig, comparison.base, overrides)
    if EMBED_SCALE not in comparison.differ:
        scale = math.sqrt(2.5 * run.model.hidden_size)
        given = run.thoughts.embed_scale
        if given is not None and not math.isclose(given, scale):
            raise ConfigError(
                f"arm {arm} has {EMBED_SCALE} = {given}, but a comparison gives every arm sqrt(2.5 d) = {scale:.4g}; "
                f"add {EMBED_SCALE} to `differ` if the difference is what you compare"
            )
        run = load_config(RunConfig, comparison.base, [*overrides, f"{EMBED_SCALE}={scale}"])
    return run


def refuse_unfair(comparison: ComparisonConfig, runs: dict[str, RunConfig]) -> None:
    """Raise ConfigError for the first key in which an arm differs from the reference without being free to."""
    reference = runs[comparison.reference_arm].model_dump(mode="json")
    for name, run in runs.items():
        for key, ours, theirs in differences(reference, run.model_dump(mode="json")):
            if not key.startswith(FREE_KEYS) and key not in comparison.differ:
                raise ConfigError(
                    f"arm {name} has {key} = {theirs} where arm {comparison.reference_arm} has {ours}: a comparison "
                    f"keeps it equal; add {key} to `differ` if the difference is what you compare"
                )


def make_use(comparison: ComparisonConfig, name: str, run: RunConfig, speeds: Mapping[str, float]) -> Use:
    """What the arm would use of the budget in a number of steps."""
    length = run.data.sequence_length
    per_step = run.training.global_batch(length) * length
    if comparison.budget == "tokens":
        return lambda steps: steps * per_step
    if comparison.budget == "training_flops":
        if run.thoughts.residual_target is not None:
            raise ConfigError(
                f"arm {name} has thoughts.residual_target, so its FLOPs are known only when it is trained; compare it by "
                "seconds or tokens"
            )
        return lambda steps: (
            steps * per_step * training_flops_per_token(run.model, run.thoughts, length, steps)
        )
    if comparison.budget == "inference_flops":
        return lambda steps: inference_flops_per_token(run.model, run.thoughts, length)
    if name not in speeds:
        raise ConfigError(
            f"the speed of arm {name} is not known; a budget in seconds is planned by measuring it"
        )
    if run.thoughts.curriculum:
        raise ConfigError(
            f"arm {name} has thoughts.curriculum, so its first steps do not tell its speed; compare it by training_flops"
        )
    return lambda steps: steps * per_step / speeds[name]


def match(
    comparison: ComparisonConfig, name: str, run: RunConfig, amount: float, speeds: Mapping[str, float]
) -> PlannedArm:
    """The arm at the size and length at which it uses the budget."""
    if name != comparison.reference_arm and comparison.spending(name) != "tokens":
        run = resized(comparison, name, run, amount)
    use, steps = make_use(comparison, name, run, speeds), run.steps
    if comparison.budget != "inference_flops":
        steps = steps_within(amount, use)
    share = use(steps) / amount
    if abs(share - 1) > comparison.tolerance:
        raise ConfigError(
            f"arm {name} uses {share:.2f} of the {UNITS[comparison.budget]}, further off than tolerance = "
            f"{comparison.tolerance}; let it spend something finer (tokens) or raise tolerance to {abs(share - 1):.2g}"
        )
    length = run.data.sequence_length
    tokens = steps * run.training.global_batch(length) * length
    config = run.model_dump(mode="json")
    config["training"] |= {"steps": None, "tokens": tokens}
    return PlannedArm(
        name=name,
        parameters=count_parameters(run.model, run.thoughts),
        training_flops_per_token=training_flops_per_token(run.model, run.thoughts, length, steps),
        inference_flops_per_token=inference_flops_per_token(run.model, run.thoughts, length),
        steps=steps,
        tokens=tokens,
        share=share,
        config=config,
    )


def resized(comparison: ComparisonConfig, name: str, run: RunConfig, amount: float) -> RunConfig:
    """The run with the number of layers or heads that comes nearest to the budget at the tokens of the base."""
    spend, length = comparison.spending(name), run.data.sequence_length
    if comparison.budget == "inference_flops":
        flops, target = inference_flops_per_token, amount
    elif comparison.budget == "training_flops":
        flops = partial(training_flops_per_token, steps=run.steps)
        target = amount / (run.steps * run.training.global_batch(length) * length)
    else:
        raise ConfigError(
            f"arm {name} cannot spend {UNITS[comparison.budget]} on {spend}; "
            "layers and width are matched by training_flops or inference_flops"
        )
    model = nearest_size(run.model, spend, target, lambda candidate: flops(candidate, run.thoughts, length))
    return with_model(run, model.model_dump(), keep_scale=EMBED_SCALE in comparison.differ)


def with_model(run: RunConfig, model: dict[str, Any], keep_scale: bool) -> RunConfig:
    """The run with another model, and the embedding scale that belongs to its width."""
    values = run.model_dump()
    values["model"] = model
    if not keep_scale:
        values["thoughts"]["embed_scale"] = math.sqrt(2.5 * model["hidden_size"])
    return build(RunConfig, values)


def differing(arms: list[PlannedArm], reference: str) -> dict[str, dict[str, Any]]:
    """Every dotted key in which some arm differs from the reference, with each arm's value."""
    base = next(arm.config for arm in arms if arm.name == reference)
    keys = dict.fromkeys(key for arm in arms for key, _, _ in differences(base, arm.config))
    return {key: {arm.name: value_at(arm.config, key) for arm in arms} for key in keys}


def value_at(config: dict[str, Any], key: str) -> Any:
    """Value of a dotted key, None where a section on the way is absent."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


# ------------------------------------------------------------------------------------------ on disk


def write_plan(plan: Plan) -> None:
    """Write plan.json and one run configuration per arm and seed; a plan that contradicts runs made by another is refused.

    Raises:
        ConfigError: a run folder exists whose configuration in the earlier plan was another one.
    """
    texts = {}
    for arm in plan.arms:
        for seed in plan.comparison.seeds:
            path = plan.config_path(arm.name, seed)
            folder = plan.run_folder(arm.name, seed)
            values = {**arm.config, "seed": seed, "output": str(folder)}
            texts[path] = to_yaml(build(RunConfig, values))
            if folder.exists() and path.exists() and path.read_text(encoding="utf-8") != texts[path]:
                raise ConfigError(
                    f"{folder} holds a run of another plan ({path} would change); "
                    "give the comparison another `output`, or remove that folder to train it again"
                )
    for path, text in texts.items():
        write_text(path, text)
    write_text(
        plan.comparison.folder / "plan.json", json.dumps(plan.model_dump(mode="json"), indent=1) + "\n"
    )


def read_plan(folder: Path) -> Plan:
    """The plan written in a comparison's folder; ConfigError if there is none."""
    path = folder / "plan.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; run `python launch/compare.py plan` with this comparison first"
        )
    return build(Plan, json.loads(path.read_text(encoding="utf-8")))


def describe_plan(plan: Plan) -> str:
    """The plan as text: the budget, what every arm gets and costs, and in what the arms differ."""
    comparison = plan.comparison
    lines = [
        f"Equal {UNITS[comparison.budget]}: {quantity(plan.amount)} for each arm "
        f"(reference: {comparison.reference_arm}), seeds {', '.join(map(str, comparison.seeds))}.",
        "",
        text_table(
            [
                "arm",
                "parameters",
                "FLOPs/token training",
                "FLOPs/token inference",
                "tokens",
                "FLOPs",
                "of budget",
            ],
            [
                [
                    arm.name,
                    quantity(arm.parameters),
                    quantity(arm.training_flops_per_token),
                    quantity(arm.inference_flops_per_token),
                    quantity(arm.tokens),
                    quantity(arm.training_flops),
                    f"{arm.share:.3f}",
                ]
                for arm in plan.arms
            ],
        ),
        "",
        "What differs between the arms:",
        "",
        text_table(*differences_table(plan)),
        "",
        held_equal(plan),
        *adapting(plan),
    ]
    return "\n".join(lines)


def differences_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what differs: a line for every arm, a column for every key."""
    rows = [[arm.name, *(short(values[arm.name]) for values in plan.differs.values())] for arm in plan.arms]
    return ["arm", *plan.differs], rows


def held_equal(plan: Plan) -> str:
    """In words, what the arms do not differ in, and the one difference that no key shows."""
    text = (
        "Equal in all arms: everything else, so initialisation family, norm epsilon, optimizer, weight decay, "
        "learning-rate schedule, batch in tokens and, per seed, the order of the data."
    )
    families = {arm.config["model"]["family"] for arm in plan.arms}
    if "pythia" in families and "thoughts.num_thoughts" in plan.differs:
        text += (
            " As in the published GPT-NeoX recipe, attention-out and MLP-down start smaller by sqrt(N + 1) in an arm "
            "with N thoughts."
        )
    return text


def adapting(plan: Plan) -> list[str]:
    """A sentence on every arm whose refinements follow its residuals, since no plan can know them."""
    measured = "; its speed is the mean of the probed steps" if plan.comparison.budget == "seconds" else ""
    return [
        f"Arm {arm.name} adapts its refinements to residuals: its training FLOPs stand here as if every number in the range "
        f"were as frequent as any other, and the report says what they were{measured}."
        for arm in plan.arms
        if arm.config["thoughts"]["residual_target"] is not None
    ]


def short(value: Any) -> str:
    """A configuration value in a table cell."""
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
