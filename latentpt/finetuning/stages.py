"""Stages of a fine-tuning as data, and where a step lies in them. Everything is a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from latentpt.finetuning.config import FinetuneConfig, LtStage
from latentpt.finetuning.fills import Kind


@dataclass(frozen=True)
class Stage:
    """Some epochs under one rule."""

    number: int
    """Steps of the chain removed (Coconut's curriculum), or the stage of LT-Tuning, from 1; 0 for plain text."""
    epochs: int
    batch: int
    """Questions per optimizer step."""
    fill: Kind | None = None
    """What latents read; None where there are none."""
    insertion: LtStage | None = None
    """LT-Tuning: how latents are inserted."""
    reset: bool = False
    """Whether AdamW starts anew here."""
    lr: float | None = None
    """Learning rate; None: the run's."""

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps of an epoch; its last batch is filled up from the epoch's beginning."""
        return -(-rows // self.batch)


class Moment(NamedTuple):
    """Where an optimizer step lies."""

    stage: Stage
    order: int
    """Which stage of the plan, from 0."""
    epoch: int
    """Epoch of the run, from 0."""
    batch: int
    """Which batch of the epoch, from 0."""
    step_in_stage: int
    stage_steps: int
    ends_epoch: bool

    @property
    def ends_stage(self) -> bool:
        """Whether it is the last of its stage."""
        return self.step_in_stage + 1 == self.stage_steps


class Plan:
    """The stages of a run over a number of rows."""

    def __init__(self, stages: Sequence[Stage], rows: int) -> None:
        self.stages, self.rows = tuple(stages), rows

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return sum(stage.epochs * stage.steps_per_epoch(self.rows) for stage in self.stages)

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return sum(stage.epochs for stage in self.stages)

    def at(self, step: int) -> Moment:
        """The moment of optimizer step `step`, from 0."""
        epochs = 0
        for order, stage in enumerate(self.stages):
            per_epoch = stage.steps_per_epoch(self.rows)
            length = per_epoch * stage.epochs
            if step < length:
                epoch, batch = divmod(step, per_epoch)
                return Moment(stage, order, epochs + epoch, batch, step, length, batch + 1 == per_epoch)
            step, epochs = step - length, epochs + stage.epochs
        raise IndexError("beyond the last step")


def planned_stages(config: FinetuneConfig) -> list[Stage]:
    """The stages that a configuration asks for."""
    batch = config.training.batch
    if config.mode in ("cot", "no_cot"):
        return [Stage(0, config.training.epochs, batch)]
    if config.mode == "lt_tuning":
        return [
            Stage(
                number,
                stage.epochs,
                stage.batch or batch,
                stage.fill,
                stage if stage.fill else None,
                number > 1,
                stage.lr,
            )
            for number, stage in enumerate(config.lt.resolved_stages(), start=1)
        ]
    return _curriculum(config)


def _curriculum(config: FinetuneConfig) -> list[Stage]:
    """Coconut: epoch e is at stage e // epochs_per_stage; stages of equal rules that follow one another are one."""
    rules, batch = config.coconut, config.training.batch
    fill: Kind | None = config.fill.kind or ("pause" if config.mode.startswith("pause") else "hidden")
    if config.mode == "no_thoughts" or rules.c_thought == 0:
        fill = None
    last = (rules.epochs - 1) // rules.epochs_per_stage
    stages: list[Stage] = []
    for epoch in range(rules.skip_epochs, rules.epochs):
        number = epoch // rules.epochs_per_stage if rules.curriculum else last
        changed = bool(stages) and stages[-1].number != number
        again = rules.reset == "epoch" or (rules.reset == "stage" and changed)
        if not stages or changed or rules.reset == "epoch":
            lr = rules.lr[min(number, len(rules.lr) - 1)] if rules.lr else None
            stages.append(Stage(number, 1, batch, fill, None, bool(stages) and again, lr))
        else:
            stages[-1] = replace(stages[-1], epochs=stages[-1].epochs + 1)
    return stages
