"""The loop that every training runs: step after step until the end, a stop signal or a STOP file, with all state saved."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from latentpt.files import write_text
from latentpt.run import RunFolder, read_metrics
from latentpt.run.checkpoints import CheckpointError, Progress
from latentpt.run.sections import CheckpointConfig, MonitorConfig
from latentpt.training import checkpoint, layers
from latentpt.training.agreement import Agreement
from latentpt.training.engine import Engine
from latentpt.training.garbage import collected_by_hand
from latentpt.training.guard import LossWatch, SkippedSteps, StopSignals
from latentpt.training.monitor import Clock, Monitor
from latentpt.training.origin import Claim, changes, from_rank_0
from latentpt.training.outcome import begun, ended
from latentpt.training.phases import Phases
from latentpt.training.profiling import Profile
from latentpt.training.sinks import open_sinks
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
        self.end_at = min(total, config.training.stop_at or total)
        self.progress = checkpoint.load(origin, engine) if origin is not None else Progress()
        self.progress.data = claim.data
        self.changed = [key for key, *_ in changes(config, origin)] if origin is not None else []
        if self.changed:  # a lower learning rate begins with a clean sheet
            self.progress.skipped_in_a_row = 0
        self.resume_watches()
        self.peak: float | None = None  # FLOP/s of all ranks where they are known
        self.monitor: Monitor | None = None  # in one of the processes
        self.saved_at = self.progress.step if origin is not None else None
        self.deadline = claim.start.deadline
        keep = config.checkpoint
        self.writer = checkpoint.Writer(config.folder.checkpoints, keep.keep_last, keep.keep_every)
        self.losses: list[Tensor] = []  # of the steps since the last line, this rank's parts, on the device
        self.spike: Spike | None = None  # the last one that nobody has acted upon
        self.phases = Phases(device)
        engine.spent = self.phases.spent
        self.squares: Tensor | None = None  # of the last step's gradient, by parameter; this rank's parts
        self.agreement = Agreement()
        self.mark: Callable[[str], None] = lambda where: None

    def resume_watches(self) -> None:
        """What looks on from step to step goes on from where the training stands."""
        progress = self.progress
        limit = self.config.training.max_skipped
        self.skips = SkippedSteps(limit, progress.skipped, progress.skipped_in_a_row)
        self.watch = LossWatch(progress.watch)
        self.logged = (progress.tokens, progress.training_flops, progress.seconds)

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
        """Train to the end or until asked to stop; the state is saved when this returns, and one line says what came out."""
        if self.rank == 0:
            begun(self.config.folder, self.progress.step, self.total, self.world)
        try:
            reason = self.train_on()
            self.conclude()  # by one rank, while the others leave: nobody watches any more
        except BaseException as error:
            self.end(error)
            raise
        self.end(None, reason)
        return self.progress

    def train_on(self) -> str | None:
        """Step after step; returns why the training has stopped before its end."""
        folder, monitor = self.config.folder, self.config.monitor
        with ExitStack() as stack:
            signals = stack.enter_context(StopSignals(folder.stop_file, self.deadline))
            settings = self.config.training
            watchdog = Watchdog(settings.silence, settings.patience, signals.orphaned, self.end)
            self.mark = stack.enter_context(watchdog).mark
            stack.enter_context(self.writer)
            if self.rank == 0:
                sinks = open_sinks(folder, monitor, self.progress.step, self.config.model_dump(mode="json"))
                self.monitor = stack.enter_context(
                    Monitor(folder.metrics, sinks, self.progress.step, self.total)
                )
                self.introduce()
            self.open(stack)
            profile = stack.enter_context(Profile(folder.profile, monitor.profile, self.rank))
            stack.enter_context(collected_by_hand())
            self.clock = Clock(self.progress.seconds)  # building and loading were no training
            if self.changed:
                self.record(kind="changed", keys=self.changed)
            if self.progress.step and not self.assessed():
                self.assess()
            reason = None
            while self.progress.step < self.end_at and reason is None:
                with self.clock:
                    profile.before(self.progress.step + 1)
                self.phases.start()
                self.advance()
                self.look()
                if self.monitor is not None:
                    self.monitor.advance()
                due = (
                    self.progress.step % self.config.checkpoint.every == 0 or self.progress.step == self.total
                )
                if due:
                    self.read_losses()
                if self.spike is not None and self.rewound():
                    continue
                if due:
                    self.save()  # first, since what is measured may fail
                self.assess()
                reason = signals.reason()
            return self.finish(reason)

    def rewound(self) -> bool:
        """Asked when the loss has spiked: whether the training has gone back to before it."""
        self.spike = None
        return False

    def end(self, error: BaseException | str | None, reason: str | None = None) -> None:
        """The training is over: by an error, by a `reason` to stop, or because it has come to its end."""
        if self.rank == 0:
            line = ended(self.config.folder, error, reason, self.facts)
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                print(line, flush=True)

    @property
    def facts(self) -> dict[str, Any]:
        """How far the training has come, and how large it is."""
        progress = self.progress
        return {
            "step": progress.step,
            "steps": self.total,
            "tokens": progress.tokens,
            "training_flops": progress.training_flops or None,  # where they are counted
            "seconds": progress.seconds,
            "skipped": progress.skipped,
            "parameters": self.parameters,
        }

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

    def update(self, lr: float, share: float = 0.0) -> None:
        """Let the engine make the step whose gradient it has, after a look at it; `share` as in `Engine.step`."""
        if self.config.monitor.layers_every is not None or self.config.monitor.skipped:
            self.squares = layers.squares(self.engine.gradients(), [*self.engine.names], self.device)
        self.engine.step(lr, share)

    def norms(self) -> tuple[list[float], list[float]]:
        """Norms of the last step's gradient and of the parameters now, by parameter; collective."""
        assert self.squares is not None  # it was looked at
        names, stage = [*self.engine.names], self.engine.zero.stage
        weights = layers.squares(self.engine.weights(), names, self.device)
        return layers.norms(self.squares, stage > 0), layers.norms(weights, stage == 3)

    def look(self) -> None:
        """What is compared and measured of all parameters where it is due; the step has waited for the device."""
        step, monitor = self.progress.step, self.config.monitor
        if monitor.compare_ranks_every is not None and step % monitor.compare_ranks_every == 0:
            self.compare_ranks()
        if monitor.layers_every is not None and step % monitor.layers_every == 0:
            names = [*self.engine.names]
            gradients, weights = (layers.by_layer(names, found) for found in self.norms())
            self.record(
                kind="layers",
                **{f"gradient/{layer}": norm for layer, norm in gradients.items()},
                **{f"weight/{layer}": norm for layer, norm in weights.items()},
            )

    def compare_ranks(self) -> None:
        """Exchange the checksums of the parameters, where every rank has all of them."""
        if self.engine.zero.stage < 3:
            self.agreement.post(self.progress.step, self.engine.weights())

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
            **{f"time/{phase}": spent / elapsed for phase, spent in self.phases.read().items()},
            **memory(self.device),
            **values,
        )
        self.agreement.check()
        gc.collect()  # see `garbage`

    def read_losses(self) -> float:
        """The loss of this step; all since they were last read are looked at for spikes, which are told."""
        if not self.losses:
            return math.nan
        losses = torch.stack(self.losses)
        dist.all_reduce(losses)
        self.losses.clear()
        values: list[float] = (losses / self.world).tolist()
        for back, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
            mean = self.watch.mean
            if self.watch.observe(value):
                self.spike = Spike(self.progress.step - back, value, mean)
                self.record(kind="spike", **self.spike._asdict())
        self.progress.watch = self.watch.state
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
        self.read_losses()
        self.compare_ranks()
        self.agreement.check()
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

    def finish(self, reason: str | None) -> str | None:
        """Save what is not saved yet; write the summary if the training has come to its end. Returns why it has not."""
        folder, step = self.config.folder, self.progress.step
        if self.saved_at != step and step > 0:
            self.save()
        if problem := self.writer.settle():
            self.tell(problem)
            self.save()  # the cause may be gone, and there is nothing left to go on with
            if problem := self.writer.settle():
                raise CheckpointError(problem)
        if step < self.total:
            reason = reason or f"training.stop_at = {self.config.training.stop_at}"
            self.say(f"stopped at step {step} of {self.total} ({reason}); run again to go on")
        else:
            reason, summary = None, self.summary()
            if self.rank == 0:
                values = {name: value for name, value in self.facts.items() if name != "steps"}
                write_text(folder.summary, json.dumps(values | summary, indent=1) + "\n")
        if self.rank == 0:
            folder.stop_file.unlink(missing_ok=True)
        return reason


class Spike(NamedTuple):
    """A step whose loss was far above those before it."""

    at: int
    """Step."""
    value: float
    """Its loss."""
    mean_before: float
    """Running mean of the losses before it."""


def memory(device: torch.device) -> dict[str, float | None]:
    """GiB that this rank's device had allocated at most since this was last asked (null on a CPU), and that it has on the host."""
    peak = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return {"device_gib": peak, "host_gib": psutil.Process().memory_info().rss / 2**30}
