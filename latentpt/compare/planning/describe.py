"""A plan in words: the budget, what every arm gets and costs, how long it takes, and in what the arms differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentpt.compare.config import UNITS, LadderConfig
from latentpt.compare.planning.plan import Plan, PlannedArm
from latentpt.config import build
from latentpt.data.errors import DataError
from latentpt.data.opening import open_training, open_validation
from latentpt.pages.tables import duration, quantity, text_table
from latentpt.run import RunConfig


def describe_plan(plan: Plan, seconds: Mapping[str, float] | None = None) -> str:
    """The plan as text; `seconds` are the expected training time of the named arms, where it is known."""
    lines = [
        budget_line(plan),
        "",
        text_table(*runs_table(plan, seconds or {})),
        "",
        total(plan, seconds or {}),
        "",
        "What differs between the arms:",
        "",
        text_table(*differences_table(plan)),
        "",
        held_equal(plan),
        *adapting(plan),
        *data_notes(plan),
    ]
    return "\n".join(lines)


def budget_line(plan: Plan) -> str:
    """What all arms get equally much of."""
    comparison, ladder = plan.comparison, plan.comparison.ladder
    seeds = ", ".join(map(str, comparison.seeds))
    if ladder is None:
        return (
            f"Equal {UNITS[comparison.budget]}: {quantity(plan.amount)} for each arm "
            f"(reference: {comparison.reference_arm}), seeds {seeds}."
        )
    budgets = ", ".join(quantity(rung.flops) for rung in ladder.budgets)
    return (
        f"A ladder of {len(ladder.sizes)} sizes and budgets of {budgets} training FLOPs for each run "
        f"(reference: {comparison.reference_arm}), seeds {seeds}, in the order of training."
    )


def runs_table(plan: Plan, seconds: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what every arm costs, at every size and budget."""
    header = [
        "arm",
        "parameters",
        "in layers",
        "KV bytes/token",
        "FLOPs/token training",
        "FLOPs/token inference",
    ]
    header += ["tokens", "tokens/parameter", "FLOPs", "of budget", "seeds", "time of one"]

    def row(arm: PlannedArm) -> list[str]:
        return [
            arm.name,
            quantity(arm.parameters),
            quantity(arm.body_parameters),
            quantity(arm.kv_bytes_per_token),
            quantity(arm.training_flops_per_token),
            quantity(arm.inference_flops_per_token),
            quantity(arm.tokens),
            f"{arm.tokens_per_parameter:.1f}",
            quantity(arm.training_flops),
            f"{arm.share:.3f}",
            str(len(arm.seeds)),
            duration(seconds[arm.name]) if arm.name in seconds else "-",
        ]

    return header, [row(arm) for arm in plan.arms]


def total(plan: Plan, seconds: Mapping[str, float]) -> str:
    """What all runs cost together."""
    jobs = plan.jobs()
    flops = sum(arm.training_flops for arm, _ in jobs)
    tuning = sum(arm.training_flops for arm, _ in jobs if arm.sweep is not None)
    text = f"{len(jobs)} runs, {quantity(flops)} FLOPs"
    if tuning:
        text += f", {quantity(tuning)} of them for the sweep of the learning rate"
        text += "" if plan.tuned else " (what it chooses is planned when it is done)"
    known = [seconds[arm.name] for arm, _ in jobs if arm.name in seconds]
    if len(known) == len(jobs):
        return f"{text}, {duration(sum(known))} of training one after another."
    return f"{text}; the time is known once arms have trained, or with `plan --probe`."


def data_notes(plan: Plan) -> list[str]:
    """What the data does not provide for: shards that are missing, arms that read them more than once."""
    data = build(RunConfig, plan.arms[0].config).data
    try:
        there = open_training(data).num_tokens
        open_validation(data)
    except DataError as error:
        return [f"Data is missing, and `run` needs it: {error}."]
    epochs = {arm.name: arm.tokens / there for arm in plan.arms if arm.tokens > there}
    if not epochs:
        return []
    listed = ", ".join(f"{name} {times:.2f}" for name, times in epochs.items())
    return [f"More than one epoch of the training data, which has {quantity(there)} tokens: {listed}."]


def differences_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what differs: a line for every arm, a column for every key."""
    names = plan.comparison.arms
    rows = [[name, *(short(values[name]) for values in plan.differs.values())] for name in names]
    return ["arm", *plan.differs], rows


def held_equal(plan: Plan) -> str:
    """In words, what the arms do not differ in, and the one difference that no key shows."""
    text = (
        "Equal in all arms: everything else, so initialisation family, norm epsilon, optimizer, weight decay, "
        "learning-rate schedule, batch in tokens and, per seed, the order of the data."
    )
    ladder = plan.comparison.ladder
    if ladder is not None:
        text += " " + rule(ladder)
    families = {arm.config["model"]["family"] for arm in plan.arms}
    if "pythia" in families and "thoughts.num_thoughts" in plan.differs:
        text += (
            " As in the published GPT-NeoX recipe, attention-out and MLP-down start smaller by sqrt(N + 1) in an arm "
            "with N thoughts."
        )
    return text


def rule(ladder: LadderConfig) -> str:
    """How sizes, learning rate and weight decay of a ladder follow from the base."""
    width = {
        "aspect": f"Widths grow with the layers ({f'{ladder.aspect:g} a layer' if ladder.aspect else 'as in the base'})",
        "width": "Only layers grow with the size, the width is held",
        "depth": "Only heads, and with them the width, grow with the size, the depth is held",
    }[ladder.hold]
    rate = (
        f"learning rates go with width to the power of {-ladder.lr_power:g}"
        if ladder.lr_power
        else "the learning rate is the same at all sizes"
    )
    decay = (
        "the weight decay is the same"
        if ladder.weight_decay == "fixed"
        else "learning rate times weight decay times steps is the same"
    )
    tuned = " Each arm's learning rate has the factor that its sweep chose." if ladder.sweep else ""
    return f"{width}; {rate}; {decay} in all runs of a size and budget.{tuned}"


def adapting(plan: Plan) -> list[str]:
    """A sentence on every arm whose refinements follow its residuals, since no plan can know them."""
    measured = "; its speed is the mean of the probed steps" if plan.comparison.budget == "seconds" else ""
    arms = {arm.arm: arm for arm in plan.arms}.values()
    return [
        f"Arm {arm.arm} adapts its refinements to residuals: its training FLOPs stand here as if every number in the range "
        f"were as frequent as any other, and the report says what they were{measured}."
        for arm in arms
        if arm.config["thoughts"]["residual_target"] is not None
    ]


def short(value: Any) -> str:
    """A configuration value in a table cell."""
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
