"""From a comparison's configuration to one run configuration per arm and seed, matched at the budget.

What is held equal is checked, not assumed: arms may differ in the size of the model, in their thoughts and in how the
work is cut into micro-batches; any other difference is refused unless the comparison names it under `differ`. The
embedding scale, which methods choose for themselves, is set to sqrt(2.5 d) in every arm.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from latentpt.compare.config import UNITS, ComparisonConfig, LadderConfig, Rung, as_overrides
from latentpt.compare.planning.ladder import outward, paced, sized
from latentpt.compare.planning.match import (
    EMBED_SCALE,
    Use,
    count,
    equally_large,
    nearest_size,
    steps_within,
    with_model,
)
from latentpt.config import ConfigError, Section, build, differences, load_config
from latentpt.data.errors import DataError
from latentpt.data.identity import data_identity
from latentpt.modeling.config import ModelConfig
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


class PlannedArm(Section):
    """One arm at its matched size and length; on a ladder, at one of its sizes and budgets."""

    name: str
    """Name of its runs: the arm's, on a ladder with size and budget."""
    arm: str
    """The arm of the comparison."""
    size: int | None = None
    """Size on the ladder; null without one."""
    rung: float | None = None
    """Training FLOPs that the ladder gives it; null without one."""
    sweep: float | None = None
    """Factor on the learning rate that this run tries out before the others; null in all others."""
    seeds: list[int]
    """Seeds it is trained with."""
    parameters: int
    """Trainable parameters."""
    body_parameters: int
    """Of these, the ones outside embeddings and head."""
    repeated_parameters: int
    """Of these, the ones of layers that every slot runs."""
    slots: int
    """Slots of a position: how often those are run for a token."""
    kv_bytes_per_token: int
    """Keys and values of one token in 16 bits."""
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

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens for each non-embedding parameter."""
        return self.tokens / self.body_parameters


class Plan(Section):
    """A comparison, resolved."""

    comparison: ComparisonConfig
    """What was asked for."""
    amount: float
    """Size of the budget in its unit; on a ladder the largest."""
    arms: list[PlannedArm]
    """The arms in the order in which they are trained."""
    differs: dict[str, dict[str, Any]]
    """Dotted key -> arm -> value, for every key in which arms differ."""
    tuned: dict[str, float] = {}
    """Arm -> factor on its learning rate that the sweep chose; empty before it is finished, or without one."""
    data: dict[str, str] = {}
    """Hashes of the training data, see `latentpt.data.identity`; empty where it was not there."""

    def run_name(self, arm: str, seed: int) -> str:
        """Name of the run of one arm and seed, in the plan/ and runs/ folders."""
        return f"{arm}-seed{seed}"

    def config_path(self, arm: str, seed: int) -> Path:
        """The run configuration that the plan wrote."""
        return self.comparison.folder / "plan" / f"{self.run_name(arm, seed)}.yaml"

    def run_folder(self, arm: str, seed: int) -> Path:
        """The folder in which that run trains."""
        return self.comparison.folder / "runs" / self.run_name(arm, seed)

    def run_config(self, arm: PlannedArm, seed: int) -> RunConfig:
        """Everything that decides the run of one arm and seed."""
        folder = self.run_folder(arm.name, seed)
        return build(RunConfig, {**arm.config, "seed": seed, "output": str(folder)})

    def jobs(self) -> list[tuple[PlannedArm, int]]:
        """Arm and seed of every run, in the order in which an answer comes early.

        Budget after budget, and in each seed after seed with all arms: so whole rounds are finished, the cheapest first,
        and the spread between seeds is known before the dear ones begin.
        """
        rounds = [
            list(group)
            for _, group in itertools.groupby(self.arms, lambda arm: (arm.sweep is None, arm.rung))
        ]
        return [
            (arm, seed)
            for group in rounds
            for seed in self.comparison.seeds
            for arm in group
            if seed in arm.seeds
        ]


def make_plan(
    comparison: ComparisonConfig,
    speeds: Mapping[str, float] | None = None,
    tuned: Mapping[str, float] | None = None,
) -> Plan:
    """Resolve every arm and match it at the budget, or at every size and budget of the ladder.

    `speeds` (tokens per second) are needed for a budget in seconds; `tuned` are the factors that a sweep chose.

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
    data = data_of(runs[comparison.reference_arm])
    if comparison.ladder is not None:
        arms = climb(comparison, comparison.ladder, runs, tuned or {})
        configs = {name: run.model_dump(mode="json") for name, run in runs.items()}
        amount = comparison.ladder.budgets[-1].flops
    else:
        arms, amount = level(comparison, runs, speeds or {})
        configs = {arm.name: arm.config for arm in arms}
    return Plan(
        comparison=comparison,
        amount=amount,
        arms=arms,
        differs=differing(configs, comparison.reference_arm),
        tuned=dict(tuned or {}),
        data=data,
    )


def level(
    comparison: ComparisonConfig, runs: Mapping[str, RunConfig], speeds: Mapping[str, float]
) -> tuple[list[PlannedArm], float]:
    """Every arm at one budget, and the size of that budget."""
    reference = comparison.reference_arm
    base = runs[reference]
    amount = comparison.amount or make_use(comparison, reference, base, speeds)(base.steps)
    first = match(comparison, reference, base, amount, speeds)
    return [
        first
        if name == reference
        else match(comparison, name, resized(comparison, name, run, amount, first), amount, speeds)
        for name, run in runs.items()
    ], amount


def climb(
    comparison: ComparisonConfig,
    ladder: LadderConfig,
    runs: Mapping[str, RunConfig],
    tuned: Mapping[str, float],
) -> list[PlannedArm]:
    """Every arm at every budget and size, the runs of a sweep first.

    The cheapest budget comes first; in a budget the sizes come from the middle outward, since a curve of loss over size
    needs its middle; in a size the reference comes first.
    """
    names = sorted(runs, key=lambda name: name != comparison.reference_arm)
    sizes, keep_scale = outward(ladder.sizes), EMBED_SCALE in comparison.differ

    def planned(name: str, size: int, rung: Rung, sweep: float | None = None) -> PlannedArm:
        run, amount = sized(ladder, runs[name], size, keep_scale), rung.flops
        steps = steps_within(amount, make_use(comparison, name, run, {}))
        run = paced(ladder, run, runs[name], steps, tuned.get(name, 1.0) if sweep is None else sweep)
        tag = "" if sweep is None else f"-lr{sweep:g}"
        seeds = comparison.seeds[: rung.seeds if sweep is None else 1]
        of = {"name": f"{name}-n{size}-{power(amount)}{tag}", "size": size, "rung": amount, "sweep": sweep}
        return match(comparison, name, run, amount, {}).model_copy(update={**of, "seeds": seeds})

    low, high = ladder.tokens_per_parameter
    grid = [planned(name, size, rung) for rung in ladder.budgets for size in sizes for name in names]
    kept = [arm for arm in grid if low <= arm.tokens_per_parameter <= high]
    if not kept:
        found = [round(arm.tokens_per_parameter, 1) for arm in grid]
        raise ConfigError(
            f"ladder.tokens_per_parameter = {[low, high]} leaves no run; the runs have {min(found)} to {max(found)}"
        )
    least = ladder.budgets[0]
    fitting = sorted(
        {arm.size for arm in kept if arm.arm == names[0] and arm.rung == least.flops and arm.size}
    )
    middle = outward(fitting or ladder.sizes)[0]
    return [planned(name, middle, least, by) for by in ladder.sweep for name in names] + kept


def power(amount: float) -> str:
    """A budget in the name of a folder: 3.2e13."""
    return re.sub(r"e\+0*", "e", f"{amount:.6g}")


def data_of(run: RunConfig) -> dict[str, str]:
    """Hashes of a run's training data; empty where it is not there."""
    try:
        return data_identity(run.data)
    except DataError:
        return {}


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
    """The arm at the length at which it uses the budget."""
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
        arm=name,
        seeds=comparison.seeds,
        **count(run.model, run.thoughts)._asdict(),
        training_flops_per_token=training_flops_per_token(run.model, run.thoughts, length, steps),
        inference_flops_per_token=inference_flops_per_token(run.model, run.thoughts, length),
        steps=steps,
        tokens=tokens,
        share=share,
        config=config,
    )


def resized(
    comparison: ComparisonConfig, name: str, run: RunConfig, amount: float, reference: PlannedArm
) -> RunConfig:
    """The run at the size that comes nearest to the budget at the tokens of the reference, if size is what it spends."""
    spend, length = comparison.spending(name), run.data.sequence_length
    if spend == "tokens":
        return run
    if spend == "triple":
        return with_model(
            run, as_reference(comparison, name, run, reference), EMBED_SCALE in comparison.differ
        )
    if comparison.budget == "inference_flops":
        flops, target = inference_flops_per_token, amount
    elif comparison.budget == "training_flops":
        flops = partial(training_flops_per_token, steps=reference.steps)
        target = amount / reference.tokens
    else:
        raise ConfigError(
            f"arm {name} cannot spend {UNITS[comparison.budget]} on {spend}; "
            "layers and width are matched by training_flops or inference_flops"
        )
    model = nearest_size(run.model, spend, target, lambda candidate: flops(candidate, run.thoughts, length))
    return with_model(run, model, keep_scale=EMBED_SCALE in comparison.differ)


def as_reference(
    comparison: ComparisonConfig, name: str, run: RunConfig, reference: PlannedArm
) -> ModelConfig:
    """The arm's model with the reference's parameters and KV bytes; ConfigError where they are not within the tolerance."""
    wanted = reference.parameters, reference.kv_bytes_per_token
    model = equally_large(run.model, run.thoughts, *wanted)
    counted = count(model, run.thoughts)
    for what, have, want in zip(
        ("parameters", "KV bytes per token"),
        (counted.parameters, counted.kv_bytes_per_token),
        wanted,
        strict=True,
    ):
        if abs(have / want - 1) > comparison.tolerance:
            raise ConfigError(
                f"arm {name} comes to {have / want:.2f} of the {what} of {reference.name}, further off than tolerance = "
                f"{comparison.tolerance}; give the base a model.num_heads that the arm's slots divide"
            )
    return model


def differing(configs: Mapping[str, dict[str, Any]], reference: str) -> dict[str, dict[str, Any]]:
    """Every dotted key in which some arm differs from the reference, with each arm's value."""
    keys = dict.fromkeys(
        key for config in configs.values() for key, _, _ in differences(configs[reference], config)
    )
    return {key: {name: value_at(config, key) for name, config in configs.items()} for key in keys}


def value_at(config: dict[str, Any], key: str) -> Any:
    """Value of a dotted key, None where a section on the way is absent."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
