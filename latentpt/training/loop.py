"""The loop that every training runs: step after step until the end, a stop signal or a STOP file, with all state saved."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from latentpt.files import write_text
from latentpt.run import RunFolder, read_metrics
from latentpt.run.checkpoints import CheckpointError, Progress
from latentpt.run.sections import CheckpointConfig, MonitorConfig
from latentpt.training import checkpoint
from latentpt.training.engine import Engine
from latentpt.training.guard import LossWatch, SkippedSteps, StopSignals
from latentpt.training.monitor import Clock, Monitor
from latentpt.training.origin import Claim, changes, from_rank_0
from latentpt.training.watchdog import Watchdog


class Limits(Protocol):
    """When a training ends before its end."""

    @property
    def stop_at(self) -> int | None:
        """Stop after this step; None: train to the end."""
        ...

    @property
    def max_skipped(self) -> int:
        """Abort after so many steps in a row without a finite gradient."""
        ...

    @property
    def silence(self) -> float:
        """Seconds without a sign of life of a rank after which all end."""
        ...

    @property
    def patience(self) -> float:
        """Seconds without progress after which all end."""
        ...


class LoopConfig(Protocol):
    """What the loop reads of a training's configuration."""

    @property
    def folder(self) -> RunFolder:
        """Where it keeps everything."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All of its values."""
        ...

    @property
    def training(self) -> Limits:
        """When it ends early."""
        ...

    @property
    def checkpoint(self) -> CheckpointConfig:
        """When the state is saved."""
        ...

    @property
    def monitor(self) -> MonitorConfig:
        """What is written down."""
        ...


C = TypeVar("C", bound=LoopConfig)


class Loop(ABC, Generic[C]):
    """One training in one process of several. `run` is the loop; a kind of training says what a step of it is."""

    def __init__(self, config: C, engine: Engine, claim: Claim, total: int, device: torch.device) -> None:
        """`claim` says where to go on from and on which data, `total` the training's optimizer steps."""
        origin = claim.origin
        self.config, self.engine, self.device = config, engine, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.total = total
        self.end = min(total, config.training.stop_at or total)
        self.progress = checkpoint.load(origin, engine) if origin is not None else Progress()
        self.progress.data = claim.data
        self.changed = [key for key, *_ in changes(config, origin)] if origin is not None else []
        if self.changed:  # a lower learning rate begins with a clean sheet
            self.progress.skipped_in_a_row = 0
        self.skips = SkippedSteps(
            config.training.max_skipped, self.progress.skipped, self.progress.skipped_in_a_row
        )
        self.peak: float | None = None  # FLOP/s of all ranks where they are known
        self.monitor: Monitor | None = None  # in one of the processes
        self.saved_at = self.progress.step if origin is not None else None
        keep = config.checkpoint
        self.writer = checkpoint.Writer(config.folder.checkpoints, keep.keep_last, keep.keep_every)
        self.losses: list[Tensor] = []  # of the steps since the last line, this rank's parts, on the device
        self.watch = LossWatch()
        self.mark: Callable[[str], None] = lambda where: None
        self.logged = (self.progress.tokens, self.progress.training_flops, self.progress.seconds)

    # ---------------------------------------------------------------------------------------------- of every kind

    @abstractmethod
    def description(self) -> list[str]:
        """Lines that introduce the training."""

    @abstractmethod
    def advance(self) -> None:
        """One optimizer step, its loss put to `losses`, and a line of metrics where it is due."""

    @abstractmethod
    def assess(self) -> None:
        """What is measured on held-out data after a step, where it is due. What it records is of the kind `validation`."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What is told at the end besides steps, tokens and seconds; collective, the first rank's is told."""

    def open(self, stack: ExitStack) -> None:
        """Open what is read from step to step until `stack` ends."""

    def conclude(self) -> None:
        """What one rank makes of the training when it has ended or stopped."""

    # ---------------------------------------------------------------------------------------------- the loop

    def run(self) -> Progress:
        """Train to the end or until asked to stop; the state is saved when this returns."""
        folder, monitor = self.config.folder, self.config.monitor
        with ExitStack() as stack:
            signals = stack.enter_context(StopSignals(folder.stop_file))
            settings = self.config.training
            watchdog = Watchdog(settings.silence, settings.patience, signals.orphaned)
            self.mark = stack.enter_context(watchdog).mark
            stack.enter_context(self.writer)
            if self.rank == 0:
                events = folder.tensorboard if monitor.tensorboard else None
                self.monitor = stack.enter_context(
                    Monitor(folder.metrics, events, self.progress.step, self.total)
                )
                self.introduce()
            self.open(stack)
            self.clock = Clock(self.progress.seconds)  # building and loading were no training
            if self.changed:
                self.record(kind="changed", keys=self.changed)
            if self.progress.step and not self.assessed():
                self.assess()
            reason = None
            while self.progress.step < self.end and reason is None:
                self.advance()
                if self.monitor is not None:
                    self.monitor.advance()
                if self.progress.step % self.config.checkpoint.every == 0 or self.progress.step == self.total:
                    self.save()  # first, since what is measured may fail
                self.assess()
                reason = signals.reason()
            self.finish(reason)
        self.conclude()  # by one rank, while the others leave: nobody watches any more
        return self.progress

    def assessed(self) -> bool:
        """Whether held-out data were measured after the step from which the training goes on: it may have ended between
        the checkpoint and that."""
        lines = read_metrics(self.config.folder.metrics) if self.rank == 0 else []
        return from_rank_0(
            any(line["kind"] == "validation" and line["step"] == self.progress.step for line in lines)
        )

    def introduce(self) -> None:
        """Print what follows from the configuration."""
        state = f"continues at step {self.progress.step}" if self.progress.step else "starts"
        place = f"{self.engine.description} on {self.device.type}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self.say(
            "\n  ".join(
                [
                    f"{self.config.folder.path} {state}: {self.description()[0]}",
                    *self.description()[1:],
                    place,
                ]
            )
        )

    def count_step(self, samples: int, tokens: int) -> None:
        """Take note of an optimizer step that the engine has made."""
        progress = self.progress
        progress.step += 1
        progress.samples += samples
        progress.tokens += tokens
        self.skips.count(progress.step, self.engine.applied)
        progress.skipped, progress.skipped_in_a_row = self.skips.total, self.skips.in_a_row

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(torch.Size(shape).numel() for shape in self.engine.shapes.values())

    # ---------------------------------------------------------------------------------------------- what it tells

    def logs(self, step: int) -> bool:
        """Whether a step gets a line of metrics."""
        return step % self.config.monitor.every == 0 or step in (1, self.total)

    def log(self, lr: float, **values: Any) -> None:
        """Write the line of this step: its loss over all ranks, its norm, the speed since the last line, and `values`."""
        loss = self.read_losses()
        progress, seconds = self.progress, self.clock.seconds
        tokens_before, flops_before, seconds_before = self.logged
        self.logged = (progress.tokens, progress.training_flops, seconds)
        elapsed = max(seconds - seconds_before, 1e-9)
        flops_per_second = (progress.training_flops - flops_before) / elapsed
        self.record(
            kind="train",
            loss=loss,
            grad_norm=self.engine.grad_norm,
            lr=lr,
            tokens_per_second=(progress.tokens - tokens_before) / elapsed,
            mfu=flops_per_second / self.peak if self.peak is not None else None,
            skipped=progress.skipped,
            **values,
        )

    def read_losses(self) -> float:
        """The loss of this step; all since they were last read are looked at for spikes, which are told."""
        losses = torch.stack(self.losses)
        dist.all_reduce(losses)
        self.losses.clear()
        values: list[float] = (losses / self.world).tolist()
        for back, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
            mean = self.watch.mean
            if self.watch.observe(value):
                self.record(kind="spike", at=self.progress.step - back, value=value, mean_before=mean)
        return values[-1]

    def record(self, kind: str, **values: Any) -> None:
        """Hand a line of measurements to the monitor of the one rank that has it."""
        progress = self.progress
        progress.seconds = self.clock.seconds
        if self.monitor is not None:
            position = {
                "kind": kind,
                "step": progress.step,
                "tokens": progress.tokens,
                "training_flops": progress.training_flops or None,  # where they are counted
                "seconds": progress.seconds,
            }
            self.monitor.record(position | values)

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.monitor is not None:
            self.monitor.say(text)

    # ---------------------------------------------------------------------------------------------- what it keeps

    def save(self) -> None:
        """Begin to write a checkpoint of this step.

        Older ones are removed once it is written, but not while the training may be diverging: one of them is then where
        to go on from.
        """
        self.mark(f"checkpoint of step {self.progress.step}")
        if self.losses:
            self.read_losses()
        self.progress.seconds = self.clock.seconds
        with self.clock:
            healthy = not (self.watch.high or self.skips.in_a_row)
            values = self.config.model_dump(mode="json")
            self.tell(self.writer.begin(self.engine, self.progress, values, prune=healthy))
        self.saved_at = self.progress.step

    def tell(self, problem: str) -> None:
        """Warn of a checkpoint that could not be written; the training goes on."""
        if problem:
            self.say(f"warning: {problem}; the training goes on, the checkpoints before it stay")

    def finish(self, reason: str | None) -> None:
        """Save what is not saved yet; write the summary if the training has come to its end."""
        folder, step = self.config.folder, self.progress.step
        if self.saved_at != step and step > 0:
            self.save()
        if problem := self.writer.settle():
            self.tell(problem)
            self.save()  # the cause may be gone, and there is nothing left to go on with
            if problem := self.writer.settle():
                raise CheckpointError(problem)
        if step < self.total:
            why = reason or f"training.stop_at = {self.config.training.stop_at}"
            self.say(f"stopped at step {step} of {self.total} ({why}); run again to go on")
        else:
            summary = self.summary()
            if self.rank == 0:
                values = {
                    "step": step,
                    "tokens": self.progress.tokens,
                    "training_flops": self.progress.training_flops or None,
                    "seconds": self.progress.seconds,
                    "skipped": self.progress.skipped,
                    "parameters": self.parameters,
                    **summary,
                }
                write_text(folder.summary, json.dumps(values, indent=1) + "\n")
        if self.rank == 0:
            folder.stop_file.unlink(missing_ok=True)
