"""A plan in words: the budget, what every arm gets and costs, and in what the arms differ."""

from __future__ import annotations

from typing import Any

from latentpt.compare.config import UNITS
from latentpt.compare.planning.plan import Plan
from latentpt.compare.tables import quantity, text_table


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
