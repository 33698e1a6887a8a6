"""The training: from a run's configuration to a trained model in its folder."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentpt.config import ConfigError
from latentpt.data.batches import (
    BatchStream,
    SampleSource,
    TokenDataset,
    check_vocabulary,
    validation_batches,
)
from latentpt.data.identity import data_identity
from latentpt.data.opening import open_training, open_validation
from latentpt.files import write_text
from latentpt.modeling.loss import IGNORE
from latentpt.run import RunConfig, RunFolder, checkpoints, read_metrics
from latentpt.run.checkpoints import Progress
from latentpt.thoughts.cost import schedule_cost, training_flops_per_token
from latentpt.thoughts.documents import document_ids
from latentpt.thoughts.measure import summed_loss
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.residuals import Residuals
from latentpt.thoughts.schedule import Schedule
from latentpt.training import checkpoint
from latentpt.training.adaptive import AdaptiveRefinements
from latentpt.training.compiling import compile_blocks
from latentpt.training.engine import Engine, start_processes
from latentpt.training.guard import LossWatch, SkippedSteps, StopSignals
from latentpt.training.learning_rate import learning_rate
from latentpt.training.monitor import Clock, Monitor, peak_flops
from latentpt.training.origin import (
    Start,
    changes,
    check_alike,
    find_origin,
    from_rank_0,
    hold,
    prepare_folder,
)
from latentpt.training.watchdog import Watchdog


def train(
    config: RunConfig, start: Start = "auto", step: int | None = None, other_data: bool = False
) -> Progress:
    """Train until the end, `training.stop_at`, a stop signal or a STOP file; the state is saved in all four cases.

    `start` says what to do with a folder that holds a training already, see `origin.Start`; `step` is the checkpoint to go
    on from (None: the latest that is intact), `other_data` allows other data than it was trained on. Called by every
    process of the training. Returns how far it has come.

    Raises:
        ConfigError, DataError: input that cannot work, before anything is written.
        TrainingDivergedError: gradients were not finite for training.max_skipped steps in a row.
    """
    rank, world, device = start_processes(config.training.deterministic)
    config.training.accumulation(config.data.sequence_length, world)
    data, held_out = open_training(config.data), open_validation(config.data)
    for dataset in (data, *held_out.values()):
        check_vocabulary(dataset, config.model.vocab_size)
    if config.data.mask_documents and data.eod_id is None:
        raise ConfigError("data.mask_documents needs shards whose manifest names the end-of-document token")
    check_alike(config)
    folder = config.folder.path
    with ExitStack() as held:
        there = from_rank_0(folder.is_dir())
        if there:
            hold(folder, held)
        origin = find_origin(config, start, step, other_data)
        model = build_model(config)
        if origin is None and config.training.start_from:
            source = RunFolder(Path(config.training.start_from))
            checkpoints.load_weights(checkpoints.find(source.checkpoints), model, may_lack="method.")
        dist.barrier()  # every rank has seen the folder as it was
        if not there:
            hold(folder, held)
        if rank == 0:
            prepare_folder(config, origin, start, device)
        dist.barrier()
        if there and start == "fresh":  # the old folder's lock went with it
            held.close()
            hold(folder, held)
        return Trainer(config, model, data, held_out, origin, device).run()


def build_model(config: RunConfig) -> LanguageModel:
    """The model with its first weights."""
    settings = config.training
    thoughts = config.thoughts.over(config.steps)
    model = LanguageModel(config.model, thoughts, settings.attention, settings.checkpoint_activations)
    model.initialize(config.seed)
    return model


def targets_of(tokens: Tensor) -> Tensor:
    """The targets [b, L] of samples [b, L + 1]; IGNORE stands where there is no loss. Asked on the host and on the device."""
    return tokens[:, 1:]


def training_loss(
    model: LanguageModel,
    tokens: Tensor,
    schedule: Schedule,
    residuals: Residuals | None = None,
    end_token: int | None = None,
    target_count: Tensor | None = None,
) -> Tensor:
    """Nats of samples [b, L + 1] over `target_count` (None: the mean over their own targets).

    `residuals`, if given, are told what refinements moved; an `end_token` keeps the documents it ends apart.
    """
    ids, targets = tokens[:, :-1], targets_of(tokens)
    documents = None if end_token is None else document_ids(ids, end_token)
    loss = model(
        ids,
        targets=targets,
        target_count=target_count,
        schedule=schedule,
        watch=residuals,
        documents=documents,
        return_logits=False,
    ).loss
    assert loss is not None  # there are targets
    return loss


class Trainer:
    """One training in one process of several. `run` is the loop; everything it does is a method."""

    def __init__(
        self,
        config: RunConfig,
        model: LanguageModel,
        data: SampleSource,
        held_out: dict[str, TokenDataset],
        origin: Path | None,
        device: torch.device,
    ) -> None:
        self.config, self.data, self.held_out, self.device = config, data, held_out, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.length, settings = config.data.sequence_length, config.training
        self.global_batch = settings.global_batch(self.length)
        self.total = config.steps
        self.end = min(self.total, settings.stop_at or self.total)
        self.model = model
        self.graphs = compile_blocks(model.decoder.blocks) if settings.compile else None
        self.engine = Engine(
            model,
            training_loss,
            config.optimizer,
            config.zero,
            settings.precision,
            settings.micro_batch,
            settings.accumulation(self.length, self.world),
            device,
        )
        self.progress = checkpoint.load(origin, self.engine) if origin is not None else Progress()
        self.progress.data = data_identity(config.data)
        self.end_token = data.eod_id if config.data.mask_documents else None
        self.adaptive: AdaptiveRefinements | None = None
        if config.thoughts.residual_target is not None:
            self.adaptive = AdaptiveRefinements(model.method, self.progress.refinements)
        self.residuals: Tensor | None = None  # of the last step, where it was measured
        self.skips = SkippedSteps(settings.max_skipped, self.progress.skipped, self.progress.skipped_in_a_row)
        peak = peak_flops(device, settings.precision, config.monitor.peak_tflops)
        self.peak = peak * self.world if peak is not None else None
        self.flops: dict[Schedule, float] = {}
        self.monitor: Monitor | None = None  # in one of the processes
        self.saved_at = self.progress.step if origin is not None else None
        keep = config.checkpoint
        self.writer = checkpoint.Writer(config.folder.checkpoints, keep.keep_last, keep.keep_every)
        self.losses: list[Tensor] = []  # of the steps since the last line, this rank's parts, on the device
        self.watch = LossWatch()
        self.changed = [key for key, *_ in changes(config, origin)] if origin is not None else []
        if self.changed:  # a lower learning rate begins with a clean sheet
            self.progress.skipped_in_a_row = 0
        self.logged = (self.progress.tokens, self.progress.training_flops, self.progress.seconds)

    def run(self) -> Progress:
        """Train to the end or until asked to stop; the state is saved when this returns."""
        monitor = self.config.monitor
        folder = self.config.folder
        with ExitStack() as stack:
            signals = stack.enter_context(StopSignals(folder.stop_file))
            settings = self.config.training
            watchdog = Watchdog(settings.silence, settings.patience, signals.orphaned)
            self.mark = stack.enter_context(watchdog).mark
            if self.rank == 0:
                events = folder.tensorboard if monitor.tensorboard else None
                self.monitor = stack.enter_context(
                    Monitor(folder.metrics, events, self.progress.step, self.total)
                )
                if self.graphs is not None:
                    self.graphs.say = self.monitor.say
            self.introduce()
            stream = stack.enter_context(self.stream())
            self.clock = Clock(self.progress.seconds)  # building and loading were no training
            if self.changed:
                self.record(kind="changed", keys=self.changed)
            reason = None
            while self.progress.step < self.end and reason is None:
                schedule = self.next_schedule()
                loss, lr = self.step(stream, schedule)
                self.after_step(loss, lr, schedule)
                reason = signals.reason()
            self.finish(reason)
        return self.progress

    def stream(self) -> BatchStream:
        """This rank's micro-batches from where the training stands."""
        return BatchStream(
            self.data,
            self.config.seed,
            self.global_batch,
            self.config.training.micro_batch,
            self.rank,
            self.world,
            self.progress.samples,
        )

    def next_schedule(self) -> Schedule:
        """The schedule of the coming step, equal on all ranks."""
        if self.adaptive is not None:
            return self.adaptive.schedule(self.progress.step)
        return self.model.training_schedule(self.config.seed, self.progress.step)

    def step(self, stream: BatchStream, schedule: Schedule) -> tuple[Tensor, float]:
        """One optimizer step; returns this rank's part of the loss (their mean over ranks is that of the global batch;
        on the device) and the learning rate."""
        progress, engine = self.progress, self.engine
        measured = Residuals() if self.adaptive is not None or self.logs(progress.step + 1) else None
        loss = torch.zeros((), device=self.device)
        batches = [next(stream) for _ in range(engine.accumulation)]
        targets = self.targets_per_micro_batch(batches)
        for batch in batches:
            self.mark(f"step {progress.step + 1}")
            tokens = batch.to(self.device, non_blocking=True)
            nats = engine.accumulate(tokens, schedule, measured, self.end_token, targets)
            loss += nats.float() / engine.accumulation
        lr = learning_rate(self.config.learning_rate, self.config.optimizer.lr, progress.step, self.total)
        engine.step(lr)
        tokens_read = self.global_batch * self.length
        progress.step += 1
        progress.samples += self.global_batch
        progress.tokens += tokens_read
        progress.training_flops += tokens_read * self.flops_per_token(schedule)
        self.measure(measured)  # the step is over on the device too: `applied` has waited for it
        self.skips.count(progress.step, engine.applied)
        progress.skipped, progress.skipped_in_a_row = self.skips.total, self.skips.in_a_row
        return loss, lr

    def targets_per_micro_batch(self, batches: list[Tensor]) -> Tensor:
        """Targets of a step's global batch over the number of its micro-batches on all ranks, at least one target in all.

        Every micro-batch divides its nats by it. Their mean, which the engine makes, is then the mean over all targets,
        wherever those that carry no loss happen to lie. float32, on the device, which is not waited for.
        """
        mine = sum(int((targets_of(batch) != IGNORE).sum()) for batch in batches)
        targets = torch.full((), float(mine), device=self.device)
        dist.all_reduce(targets)
        return targets.clamp(min=1) / (len(batches) * self.world)

    def measure(self, measured: Residuals | None) -> None:
        """Average the residuals of a step over ranks, on the device."""
        self.residuals = measured.values() if measured is not None else None
        if self.residuals is not None:
            self.residuals = self.residuals.to(self.device)
            dist.all_reduce(self.residuals)
            self.residuals /= self.world
            if self.adaptive is not None:
                self.adaptive.observe(self.residuals.tolist())

    def logs(self, step: int) -> bool:
        """Whether a step gets a line of metrics."""
        return step % self.config.monitor.every == 0 or step in (1, self.total)

    def flops_per_token(self, schedule: Schedule) -> float:
        """FLOPs of forward and backward per token under the schedule of a step."""
        if schedule not in self.flops:
            cost = schedule_cost(self.config.model, self.model.method, schedule, self.length)
            self.flops[schedule] = cost.total
        return self.flops[schedule]

    def after_step(self, loss: Tensor, lr: float, schedule: Schedule) -> None:
        """What is due after a step: a line of metrics, a validation, a checkpoint."""
        step = self.progress.step
        self.losses.append(loss)
        if self.monitor is not None:
            self.monitor.advance()
        last = step == self.total
        if self.logs(step):
            self.log(lr, schedule)
        if step % self.config.checkpoint.every == 0 or last:
            self.save()  # first, since a validation may fail
        if step % self.config.validation.every == 0 or last:
            self.validate()

    def log(self, lr: float, schedule: Schedule) -> None:
        """Write the line of this step: its loss over the global batch, its norm, the speed since the last line."""
        mean = self.read_losses()
        progress, seconds = self.progress, self.clock.seconds
        tokens_before, flops_before, seconds_before = self.logged
        self.logged = (progress.tokens, progress.training_flops, seconds)
        elapsed = max(seconds - seconds_before, 1e-9)
        residuals = self.residuals.tolist() if self.residuals is not None else []
        flops_per_second = (progress.training_flops - flops_before) / elapsed
        self.record(
            kind="train",
            loss=mean,
            grad_norm=self.engine.grad_norm,
            lr=lr,
            tokens_per_second=(progress.tokens - tokens_before) / elapsed,
            mfu=flops_per_second / self.peak if self.peak is not None else None,
            refinements=schedule.refinements or None,
            skipped=progress.skipped,
            **{f"residual/{k}": residual for k, residual in enumerate(residuals, start=1)},
        )

    def read_losses(self) -> float:
        """The loss of this step; all since they were last read are looked at for spikes, which are told."""
        losses = torch.stack(self.losses)
        dist.all_reduce(losses)
        self.losses.clear()
        values = (losses / self.world).tolist()
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
                "training_flops": progress.training_flops,
                "seconds": progress.seconds,
            }
            self.monitor.record(position | values)

    def validate(self) -> None:
        """Mean loss over the held-out samples by the training forward of this phase, over all ranks, and that of every source."""
        with self.clock:
            sums = torch.stack([self.held_out_sums(dataset) for dataset in self.held_out.values()])
            dist.all_reduce(sums)
        total, count, *thought = sums.sum(0).tolist()
        each = {
            f"loss/{name}": (s / n).item()
            for name, (s, n, *_) in zip(self.held_out, sums, strict=True)
            if name
        }
        self.record(kind="validation", loss=total / count, **each, **self.thinking(count, thought))

    def thinking(self, count: float, thought: list[float]) -> dict[str, float]:
        """Of `count` tokens the average number of thoughts and the share that comes as far as each slot, where they differ."""
        if self.model.method.halting is None:
            return {}
        reached, weights = torch.tensor(thought).view(2, -1).tolist()
        shares = {f"reach/{slot}": weight / count for slot, weight in enumerate(weights) if slot}
        return {"thoughts": sum(reached[1:]) / count, **shares}

    def held_out_sums(self, dataset: TokenDataset) -> Tensor:
        """This rank's share of a held-out corpus in float64: [nats, tokens, of each slot the tokens that think it, and W]."""
        micro, limit = self.config.training.micro_batch, self.config.validation.samples
        samples = min(limit or dataset.num_samples, dataset.num_samples)
        batches = validation_batches(dataset, micro, limit, self.rank, self.world)
        filler = torch.zeros(1, self.length + 1, dtype=torch.int64)
        schedule = self.model.method.schedule_at(self.progress.step - 1)
        sums = torch.zeros(2 + 2 * self.model.method.slots, dtype=torch.float64, device=self.device)
        for _ in range(-(-samples // (micro * self.world))):
            # A rank that has no batch left runs the model all the same, for others may wait for its parameters.
            self.mark(f"validation after step {self.progress.step}")
            batch = next(batches, None)
            used = [filler if batch is None else batch]
            measured = self.engine.call(summed_loss, used, False, self.end_token, schedule)
            if batch is not None:
                nats, tokens, reached, weights = measured
                found = [nats, tokens, *reached, *weights]
                sums += torch.tensor(found, dtype=torch.float64, device=self.device)
        return sums

    def save(self) -> None:
        """Begin to write a checkpoint of this step.

        Older ones are removed once it is written, but not while the training may be diverging: one of them is then where
        to go on from.
        """
        self.mark(f"checkpoint of step {self.progress.step}")
        if self.losses:
            self.read_losses()
        self.progress.seconds = self.clock.seconds
        if self.adaptive is not None:
            self.progress.refinements = self.adaptive.refinements
        with self.clock:
            healthy = not (self.watch.high or self.skips.in_a_row)
            values = self.config.model_dump(mode="json")
            self.tell(self.writer.begin(self.engine, self.progress, values, prune=healthy))
        self.saved_at = self.progress.step

    def tell(self, problem: str) -> None:
        """Warn of a checkpoint that could not be written; the training goes on."""
        if problem and self.monitor is not None:
            self.monitor.say(f"warning: {problem}; the training goes on, the checkpoints before it stay")

    def finish(self, reason: str | None) -> None:
        """Save what is not saved yet; write the summary if the training has come to its end."""
        folder, step = self.config.folder, self.progress.step
        if self.saved_at != step and step > 0:
            self.save()
        if problem := self.writer.settle():
            self.tell(problem)
            self.save()  # the cause may be gone, and there is nothing left to go on with
            if problem := self.writer.settle():
                raise checkpoints.CheckpointError(problem)
        if self.monitor is None:
            return
        folder.stop_file.unlink(missing_ok=True)
        if step < self.total:
            why = reason or f"training.stop_at = {self.config.training.stop_at}"
            self.monitor.say(f"stopped at step {step} of {self.total} ({why}); run again to go on")
            return
        final = {line["kind"]: line.get("loss") for line in read_metrics(folder.metrics)}
        values = {
            "step": step,
            "tokens": self.progress.tokens,
            "training_flops": self.progress.training_flops,
            "seconds": self.progress.seconds,
            "skipped": self.progress.skipped,
            "parameters": self.parameters,
            "train_loss": final.get("train"),
            "validation_loss": final.get("validation"),
        }
        write_text(folder.summary, json.dumps(values, indent=1) + "\n")

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(torch.Size(shape).numel() for shape in self.engine.shapes.values())

    def introduce(self) -> None:
        """Print what follows from the configuration, once."""
        if self.monitor is None:
            return
        config, per_step = self.config, self.global_batch * self.length
        flops = training_flops_per_token(config.model, config.thoughts, self.length, self.total)
        state = f"continues at step {self.progress.step}" if self.progress.step else "starts"
        thoughts = config.thoughts
        self.monitor.say(
            f"{config.folder.path} {state}: {config.model.family} with {self.parameters:,} parameters, "
            f"{thoughts.method} with {thoughts.num_thoughts} thoughts a token\n"
            f"  {self.total:,} steps of {per_step:,} tokens = {self.global_batch} samples of {self.length} "
            f"= {config.training.micro_batch} x {self.engine.accumulation} micro-batches x {self.world} ranks\n"
            f"  {self.total * per_step:,} tokens of {self.data.num_tokens:,} in the shards "
            f"({self.total * self.global_batch / self.data.num_samples:.2f} epochs)\n"
            f"  {flops:.4g} training FLOPs a token, {flops * self.total * per_step:.4g} in all\n"
            f"  {self.engine.description} on {self.device.type}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
