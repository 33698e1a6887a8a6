"""The sweep of a ladder: which learning rate each arm keeps."""

from __future__ import annotations

from latentpt.compare.planning.plan import Plan
from latentpt.compare.running.execute import finished
from latentpt.compare.running.measure import kept


def sweep_of(plan: Plan) -> Plan:
    """The plan of the sweep alone."""
    return plan.model_copy(update={"arms": [arm for arm in plan.arms if arm.sweep is not None]})


def chosen(plan: Plan) -> dict[str, float]:
    """Arm -> the factor on its learning rate with the lowest exact loss; empty unless the whole sweep is finished."""
    losses: dict[str, dict[float, float]] = {}
    for arm, seed in sweep_of(plan).jobs():
        measured = kept(plan, arm.name, seed) if finished(plan.run_folder(arm.name, seed)) else None
        if measured is None or arm.sweep is None:
            return {}
        losses.setdefault(arm.arm, {})[arm.sweep] = measured.exact_loss
    return {name: min(found, key=found.__getitem__) for name, found in losses.items()}
