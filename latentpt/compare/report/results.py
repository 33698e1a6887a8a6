"""What the arms' folders say: curves from metrics.jsonl, losses measured after training, figures for the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentpt.compare.planning.plan import Plan, PlannedArm
from latentpt.compare.report.spread import Estimate, estimate, smallest_difference
from latentpt.compare.running.execute import finished
from latentpt.compare.running.measure import Measured, kept
from latentpt.config import ConfigError, build
from latentpt.modeling.config import ModelConfig
from latentpt.run import RunFolder, read_metrics
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.cost import inference_flops_per_token


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    seed: int
    """Its seed."""
    curve: dict[str, np.ndarray]
    """Validation during training: tokens, training_flops, seconds, loss, each [points]."""
    seconds: float
    """Wall time of training, evaluation not counted."""
    tokens: int
    """Tokens trained on."""
    training_flops: float
    """FLOPs of forward and backward, counted step by step."""
    measured: Measured
    """Losses and texts measured after training."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over its finished seeds."""

    plan: PlannedArm
    """What was planned."""
    runs: list[RunResult]
    """Its finished runs, in the order of the seeds."""

    @property
    def name(self) -> str:
        """The arm's name."""
        return self.plan.name

    @property
    def loss(self) -> Estimate:
        """Validation loss of the training forward, nats per token."""
        return estimate([run.measured.loss for run in self.runs])

    @property
    def exact_loss(self) -> Estimate:
        """Validation loss of exact sequential decoding, nats per token."""
        return estimate([run.measured.exact_loss for run in self.runs])

    @property
    def gap(self) -> Estimate:
        """Exact loss minus that of the training forward: what training's approximation hides."""
        return estimate([run.measured.exact_loss - run.measured.loss for run in self.runs])

    @property
    def speed(self) -> Estimate:
        """Training tokens per second."""
        return estimate([run.tokens / run.seconds for run in self.runs])

    @property
    def training_flops(self) -> float:
        """Counted FLOPs of one training, the mean over seeds where refinements are drawn or adapted."""
        return estimate([run.training_flops for run in self.runs]).mean

    @property
    def thoughts(self) -> Estimate:
        """Average number of thoughts of a token in exact decoding."""
        return estimate([sum(reached[1:]) for reached in self.reached])

    @property
    def inference_flops_per_token(self) -> float:
        """FLOPs per token of exact decoding with the thoughts that were measured, the mean over seeds."""
        model = build(ModelConfig, self.plan.config["model"])
        thoughts = build(ThoughtsConfig, self.plan.config["thoughts"])
        length = self.plan.config["data"]["sequence_length"]
        costs = [inference_flops_per_token(model, thoughts, length, reached) for reached in self.reached]
        return estimate(costs).mean

    @property
    def reached(self) -> list[list[float]]:
        """Run by run, slot by slot the share of tokens that thinks it; all do where nothing else was measured."""
        slots = self.plan.config["thoughts"]["num_thoughts"] + 1
        return [run.measured.reached or [1.0] * slots for run in self.runs]

    @property
    def seconds(self) -> Estimate:
        """Wall time of training."""
        return estimate([run.seconds for run in self.runs])


@dataclass(frozen=True)
class Results:
    """A comparison as far as it was run."""

    plan: Plan
    """Its plan."""
    arms: list[ArmResult]
    """Arms with at least one finished run, in the plan's order."""

    @property
    def complete(self) -> bool:
        """Whether every planned run is finished."""
        return sum(len(arm.runs) for arm in self.arms) == len(self.plan.jobs())

    @property
    def reference(self) -> ArmResult | None:
        """The reference arm, None while it has no finished run."""
        name = self.plan.comparison.reference_arm
        return next((arm for arm in self.arms if arm.name == name), None)

    def shared_losses(self) -> dict[str, np.ndarray]:
        """Exact loss of every arm, [seeds], over the seeds that all arms here have finished."""
        shared = set.intersection(*({run.seed for run in arm.runs} for arm in self.arms))
        return {
            arm.name: np.array([run.measured.exact_loss for run in arm.runs if run.seed in shared])
            for arm in self.arms
        }

    def smallest_difference(self) -> float | None:
        """Smallest difference in mean exact loss, over `shared_losses`, that seeds do not explain."""
        losses = np.array(list(self.shared_losses().values()))
        return smallest_difference(losses) if losses.size else None


def source_table(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of each arm's exact loss by held-out source; no columns where there is one source."""
    names = list(dict.fromkeys(name for arm in arms for run in arm.runs for name in run.measured.sources))

    def cell(arm: ArmResult, name: str) -> str:
        found = [run.measured.sources[name] for run in arm.runs if name in run.measured.sources]
        return f"{estimate(found):.4f}" if found else "-"

    return ["arm", *names], [[arm.name, *(cell(arm, name) for name in names)] for arm in arms]


def task_table(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of each arm's metrics of downstream tasks; no columns where none were asked for."""
    found = [
        (task, key) for arm in arms for run in arm.runs for task, m in run.measured.tasks.items() for key in m
    ]
    metrics = list(dict.fromkeys(found))

    def cell(arm: ArmResult, task: str, key: str) -> str:
        values = [
            run.measured.tasks[task][key] for run in arm.runs if key in run.measured.tasks.get(task, {})
        ]
        return f"{estimate(values):.4f}" if values else "-"

    header = ["arm", *(f"{task} {key}" for task, key in metrics)]
    return header, [[arm.name, *(cell(arm, *metric) for metric in metrics)] for arm in arms]


def read_results(plan: Plan) -> Results:
    """Read every finished and measured run; ConfigError if there is none."""
    arms = []
    for arm in plan.arms:
        found = (read_run(plan, arm.name, seed) for seed in arm.seeds)
        runs = [run for run in found if run is not None]
        if runs:
            arms.append(ArmResult(arm, runs))
    if not arms:
        raise ConfigError(f"{plan.comparison.folder} has no finished run yet; `compare.py run` trains them")
    return Results(plan, arms)


def read_run(plan: Plan, arm: str, seed: int) -> RunResult | None:
    """One run from its folder; None unless it was trained to its end and measured as it is now."""
    folder = plan.run_folder(arm, seed)
    measured = kept(plan, arm, seed) if finished(folder) else None
    if measured is None:
        return None
    lines = read_metrics(RunFolder(folder).metrics)
    validation = [line for line in lines if line["kind"] == "validation"]
    last = next(line for line in reversed(lines) if line["kind"] == "train")
    return RunResult(
        seed=seed,
        curve={
            key: np.array([line[key] for line in validation])
            for key in ("tokens", "training_flops", "seconds", "loss")
        },
        seconds=last["seconds"],
        tokens=last["tokens"],
        training_flops=last["training_flops"],
        measured=measured,
    )
