"""What a ladder says: laws, frontiers, multipliers and paired differences of its arms, each with an interval.

Every figure is of exact decoding. N counts the parameters outside embeddings and head, D the training tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from latentpt.compare.config import LadderConfig
from latentpt.compare.fits.draws import Interval, bootstrap, interval, redraw, refit, signs, spread
from latentpt.compare.fits.frontier import Costs, frontier, multipliers, size_exponent
from latentpt.compare.fits.isoflop import parabola
from latentpt.compare.fits.law import ALPHA, BETA, LOG_E, PHI, Design, Fit, fit_law
from latentpt.compare.fits.paired import Paired, paired, seed_deviation
from latentpt.compare.fits.projection import Floats, project
from latentpt.compare.planning.plan import PlannedArm
from latentpt.compare.report.results import Results, RunResult

NEAR = 2.0  # a parabola whose lowest point lies further than this outside the measured sizes has none
SEED = 0  # of the bootstrap: the same runs give the same page


class Run(NamedTuple):
    """One finished run of the ladder."""

    arm: PlannedArm
    result: RunResult

    @property
    def loss(self) -> float:
        """Exact loss, nats per token."""
        return self.result.measured.exact_loss

    @property
    def place(self) -> tuple[int, float, int]:
        """Size, budget and seed, which runs of several arms share."""
        assert self.arm.size is not None and self.arm.rung is not None
        return self.arm.size, self.arm.rung, self.result.seed


class Optimum(NamedTuple):
    """The best size at one budget, as the parabola and as the law see it; None where it has no lowest point."""

    flops: float
    parabola: Interval | None
    parabola_loss: Interval | None
    law: Interval | None
    law_loss: Interval | None


class Multiplier(NamedTuple):
    """How many times the arm's FLOPs the baseline needs for the loss that the arm has at its best size for `flops`."""

    flops: float
    training: Interval
    inference: Interval
    lifetime: dict[float, Interval]
    beyond: bool
    """Whether the baseline's FLOPs lie outside the budgets it was trained with."""


@dataclass
class ArmStudy:
    """One arm over the ladder."""

    name: str
    runs: list[Run]
    fit: Fit | None = None
    """Its law; None where there are too few runs."""
    draws: Floats | None = None
    """Laws of the bootstrap [k, 5]."""
    law: dict[str, Interval] = field(default_factory=dict)
    """E, a, b, and the exponent of the best size."""
    projected: dict[str, float] = field(default_factory=dict)
    """The same by variable projection."""
    deviation: float | None = None
    """Relative spread of its runs around the law."""
    optima: list[Optimum] = field(default_factory=list)
    """Budget by budget."""
    parabola_exponent: Interval | None = None
    """Exponent of the best size over the budgets' parabolas."""
    multipliers: list[Multiplier] = field(default_factory=list)
    """Over the baseline, budget by budget; empty for the baseline itself."""
    phi: Interval | None = None
    """Recurrence exponent, fitted together with the baseline; None where slots are as many."""
    paired: dict[float, Paired] = field(default_factory=dict)
    """Budget -> difference from the baseline at the same sizes and seeds."""

    @property
    def costs(self) -> Costs:
        """FLOPs per token at its sizes."""
        sizes = sorted(
            {arm.body_parameters: arm for arm, _ in reversed(self.runs)}.values(),
            key=lambda a: a.body_parameters,
        )
        columns = zip(
            *((a.body_parameters, a.training_flops_per_token, a.inference_flops_per_token) for a in sizes),
            strict=True,
        )
        return Costs(*(np.array(column, dtype=float) for column in columns))

    def losses(self, flops: float) -> dict[tuple[int, int], float]:
        """(size, seed) -> loss at one budget."""
        return {
            (size, seed): run.loss for run in self.runs for size, rung, seed in [run.place] if rung == flops
        }


@dataclass
class Study:
    """A ladder as far as it was run."""

    results: Results
    baseline: str
    arms: dict[str, ArmStudy]
    """Arms with a finished run, the baseline first."""
    tuning_flops: float
    """Training FLOPs of the sweep of the learning rate."""

    @property
    def ladder(self) -> LadderConfig:
        """What was asked for."""
        ladder = self.results.plan.comparison.ladder
        assert ladder is not None
        return ladder

    @property
    def budgets(self) -> list[float]:
        """Training budgets with a finished run."""
        return sorted({run.arm.rung for arm in self.arms.values() for run in arm.runs if run.arm.rung})

    def seed_deviations(self) -> dict[float, tuple[float, int]]:
        """Budget -> standard deviation of the baseline's loss between seeds and its degrees of freedom, where it is known."""
        base = self.arms.get(self.baseline)
        found = {flops: seed_deviation(base.losses(flops)) for flops in self.budgets} if base else {}
        return {flops: deviation for flops, deviation in found.items() if deviation is not None}


def read_study(results: Results) -> Study:
    """Fit everything that the finished runs allow."""
    plan = results.plan
    ladder, baseline = plan.comparison.ladder, plan.comparison.reference_arm
    assert ladder is not None
    runs = [Run(arm.plan, result) for arm in results.arms for result in arm.runs if arm.plan.sweep is None]
    swept = [r.training_flops for arm in results.arms for r in arm.runs if arm.plan.sweep is not None]
    names = sorted(
        {run.arm.arm for run in runs},
        key=lambda name: (name != baseline, [*plan.comparison.arms].index(name)),
    )
    arms = {name: ArmStudy(name, [run for run in runs if run.arm.arm == name]) for name in names}
    places = {place: number for number, place in enumerate(sorted({run.place for run in runs}))}
    drawn = signs(np.arange(len(places)), ladder.draws, np.random.default_rng(SEED))
    sign = {name: drawn[:, [places[run.place] for run in arm.runs]] for name, arm in arms.items()}
    study = Study(results, baseline, arms, sum(swept))
    for name, arm in arms.items():
        fit_arm(arm, sign[name], study.budgets)
        if name != baseline and baseline in arms:
            against(arms[baseline], arm, study, np.concatenate([sign[baseline], sign[name]], axis=1))
    return study


def columns(runs: Sequence[Run]) -> Iterator[Floats]:
    """Non-embedding parameters, training tokens and losses of runs, each [n]."""
    yield np.array([run.arm.body_parameters for run in runs], dtype=float)
    yield np.array([run.result.tokens for run in runs], dtype=float)
    yield np.array([run.loss for run in runs])


def fit_arm(arm: ArmStudy, sign: Floats, budgets: Sequence[float]) -> None:
    """Law, projection and best sizes of one arm under the bootstrap's signs [k, n]."""
    parameters, tokens, loss = columns(arm.runs)
    arm.fit = fit = fit_law(Design.plain(parameters, tokens), loss)
    if fit is None:
        arm.optima = [curve(arm, flops, None, None) for flops in budgets]
        return
    losses, arm.deviation = redraw(fit, sign), spread(fit)
    arm.draws = refit(fit, losses)
    arm.law = {name: interval(float(of(fit.theta[None])[0]), of(arm.draws)) for name, of in LAW.items()}
    flat = project(parameters, tokens, loss)[None]
    arm.projected = {name: float(of(flat)[0]) for name, of in LAW.items()}
    arm.optima = [curve(arm, flops, fit, losses) for flops in budgets]
    arm.parabola_exponent = slope_of_optima(arm, losses, budgets)


LAW = {
    "E": lambda theta: np.exp(theta[:, LOG_E]),
    "a": lambda theta: theta[:, ALPHA],
    "b": lambda theta: theta[:, BETA],
    "size exponent": size_exponent,
}


def curve(arm: ArmStudy, flops: float, fit: Fit | None, losses: Floats | None) -> Optimum:
    """Best size at one budget; intervals over redrawn losses [k, n], where the law could be fitted."""
    here = np.array([run.arm.rung == flops for run in arm.runs])
    parameters, _, loss = columns(arm.runs)
    found = parabola(parameters[here], loss[None, here]) if here.any() else None
    size = height = None
    if (
        found is not None
        and parameters[here].min() / NEAR < found.parameters[0] < NEAR * parameters[here].max()
    ):
        drawn = None if losses is None else parabola(parameters[here], losses[:, here])
        size = (
            alone(found.parameters)
            if drawn is None
            else interval(float(found.parameters[0]), drawn.parameters)
        )
        height = alone(found.loss) if drawn is None else interval(float(found.loss[0]), drawn.loss)
    if fit is None or arm.draws is None or not here.any():
        return Optimum(flops, size, height, None, None)
    one, many = frontier(fit.theta[None], arm.costs, flops), frontier(arm.draws, arm.costs, flops)
    return Optimum(
        flops,
        size,
        height,
        interval(float(one.parameters[0]), many.parameters),
        interval(float(one.loss[0]), many.loss),
    )


def alone(value: Floats) -> Interval:
    """A value [1] whose interval is not known."""
    return Interval(float(value[0]), np.nan, np.nan)


def slope_of_optima(arm: ArmStudy, losses: Floats, budgets: Sequence[float]) -> Interval | None:
    """Exponent of the parabolas' best size over the budgets; None unless two of them have one."""
    parameters, _, loss = columns(arm.runs)
    stacked, known = np.vstack([loss, losses]), []
    for flops in budgets:
        here = np.array([run.arm.rung == flops for run in arm.runs])
        found = parabola(parameters[here], stacked[:, here]) if here.any() else None
        if found is not None and np.isfinite(found.parameters[0]):
            known.append((np.log(flops), np.log(found.parameters)))
    if len(known) < 2:
        return None
    x = np.array([log_flops for log_flops, _ in known])
    slopes = (x - x.mean()) @ np.array([sizes for _, sizes in known]) / ((x - x.mean()) ** 2).sum()
    return interval(float(slopes[0]), slopes[1:])


def against(base: ArmStudy, arm: ArmStudy, study: Study, sign: Floats) -> None:
    """Multipliers, recurrence exponent and paired differences of an arm over the baseline."""
    for flops in study.budgets:
        difference = paired(base.losses(flops), arm.losses(flops))
        if difference is not None:
            arm.paired[flops] = difference
    if base.fit is None or arm.fit is None or base.draws is None or arm.draws is None:
        return
    served = study.ladder.served
    trained = [run.arm.rung for run in base.runs if run.arm.rung]
    for flops in sorted({run.arm.rung for run in arm.runs if run.arm.rung}):
        one = multipliers(base.fit.theta[None], base.costs, arm.fit.theta[None], arm.costs, flops, served)
        many = multipliers(base.draws, base.costs, arm.draws, arm.costs, flops, served)
        training = interval(float(one.training[0]), many.training)
        lifetime = {n: interval(float(one.lifetime[n][0]), many.lifetime[n]) for n in served}
        beyond = not min(trained) <= training.value * flops <= max(trained)
        inference = interval(float(one.inference[0]), many.inference)
        arm.multipliers.append(Multiplier(flops, training, inference, lifetime, beyond))
    arm.phi = recurrence(base.runs + arm.runs, sign)


def recurrence(runs: Sequence[Run], sign: Floats) -> Interval | None:
    """The exponent phi of one law for runs that repeat their layers differently often; None where they do not."""
    parameters, tokens, loss = columns(runs)
    repeated = np.array([run.arm.repeated_parameters for run in runs], dtype=float)
    times = np.array([run.arm.slots for run in runs], dtype=float)
    fit = fit_law(Design(parameters - repeated, repeated, times, tokens), loss, recurrence=True)
    if fit is None:
        return None
    return interval(float(fit.theta[PHI]), bootstrap(fit, sign)[:, PHI])


def as_data(study: Study) -> Mapping[str, object]:
    """Every figure of the study as JSON."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if hasattr(value, "_asdict"):
            return plain(value._asdict())
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value if not isinstance(value, float) or np.isfinite(value) else str(value)

    arms = {
        name: {
            "law": arm.law,
            "projected": arm.projected,
            "deviation": arm.deviation,
            "optima": arm.optima,
            "parabola_exponent": arm.parabola_exponent,
            "multipliers": arm.multipliers,
            "phi": arm.phi,
            "paired": arm.paired,
        }
        for name, arm in study.arms.items()
    }
    return {
        "baseline": study.baseline,
        "tuning_flops": study.tuning_flops,
        "seed_deviation": plain(study.seed_deviations()),
        "arms": plain(arms),
    }
