"""The training: from a run's configuration to a trained model in its folder."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
from latentpt.modeling.loss import IGNORE
from latentpt.run import RunConfig
from latentpt.run.checkpoints import Progress, committed, step_of
from latentpt.run.command import AUTO, Start
from latentpt.thoughts.cost import schedule_cost, training_flops_per_token
from latentpt.thoughts.documents import document_ids
from latentpt.thoughts.measure import summed_loss
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.watch import Watch
from latentpt.training import checkpoint
from latentpt.training.adaptive import AdaptiveRefinements
from latentpt.training.compiling import compile_blocks
from latentpt.training.engine import Engine, start_processes
from latentpt.training.evidence import keep_evidence
from latentpt.training.learning_rate import learning_rate
from latentpt.training.looking import Measured, Passes
from latentpt.training.loop import Loop, Spike
from latentpt.training.monitor import peak_flops
from latentpt.training.origin import Claim, claimed, from_rank_0, newest_intact
from latentpt.training.outcome import last_values
from latentpt.training.rewind import Rewind, read_rewinds, samples_at, write_rewinds
from latentpt.training.sinks import check_sinks
from latentpt.training.start import load_start

WRITING_PARAMETERS = 1_000_000_000
"""Most parameters of a model that is loaded once more, on the CPU, to write texts for the page; launch/report.py does for any."""

FIXED = ("seed", "model.", "data.sequence_length", "optimizer.kind")
"""A resumed training must go on with these as they were, or it would not be the same training."""


def train(config: RunConfig, start: Start = AUTO) -> Progress:
    """Train until the end, `training.stop_at`, a stop signal or a STOP file; the state is saved in all four cases.

    `start` says what to do with a folder that holds a training already. Called by every process of
    the training. Returns how far it has come.

    Raises:
        ConfigError, DataError: input that cannot work, before anything is written.
        TrainingDivergedError: gradients were not finite for training.max_skipped steps in a row.
    """
    with claimed_inputs(config, start) as inputs:
        loaded = inputs.claim.origin is None and config.training.start_from
        model = build_model(config, on="meta" if config.zero.stage == 3 and not loaded else "cpu")
        if loaded:
            load_start(config, model)
        inputs.claim.make_ready(inputs.device)
        return Trainer(config, model, inputs.data, inputs.held_out, inputs.claim, inputs.device).run()


class Inputs(NamedTuple):
    """What a training begins with besides its model."""

    data: SampleSource
    held_out: dict[str, TokenDataset]
    claim: Claim
    device: torch.device


@contextmanager
def claimed_inputs(config: RunConfig, start: Start) -> Iterator[Inputs]:
    """Look at everything that a training needs and keep its folder while the block runs, writing nothing; collective.

    Raises ConfigError or DataError for input that cannot work.
    """
    _, world, device = start_processes(config.training.deterministic)
    config.training.accumulation(config.data.sequence_length, world)
    data, held_out = open_training(config.data), open_validation(config.data)
    for dataset in (data, *held_out.values()):
        check_vocabulary(dataset, config.model.vocab_size)
    check_sinks(config.monitor)
    if config.data.mask_documents and data.eod_id is None:
        raise ConfigError("data.mask_documents needs shards whose manifest names the end-of-document token")
    with claimed(config, start, FIXED, data_identity(config.data)) as claim:
        yield Inputs(data, held_out, claim, device)


def build_model(config: RunConfig, on: str = "cpu") -> LanguageModel:
    """The model with its first weights; on the device `meta` with shapes alone."""
    settings = config.training
    thoughts = config.thoughts.over(config.steps)
    with torch.device(on):
        model = LanguageModel(config.model, thoughts, settings.attention, settings.checkpoint_activations)
    if on != "meta":
        model.initialize(config.seed)
    return model


def targets_of(tokens: Tensor) -> Tensor:
    """The targets [b, L] of samples [b, L + 1]; IGNORE stands where there is no loss. Asked on the host and on the device."""
    return tokens[:, 1:]


def training_loss(
    model: LanguageModel,
    tokens: Tensor,
    schedule: Schedule,
    watch: Watch | None = None,
    end_token: int | None = None,
    target_count: Tensor | None = None,
) -> Tensor:
    """Nats of samples [b, L + 1] over `target_count` (None: the mean over their own targets).

    A `watch` looks on; an `end_token` keeps the documents it ends apart.
    """
    ids, targets = tokens[:, :-1], targets_of(tokens)
    documents = None if end_token is None else document_ids(ids, end_token)
    loss = model(
        ids,
        targets=targets,
        target_count=target_count,
        schedule=schedule,
        watch=watch,
        documents=documents,
        return_logits=False,
    ).loss
    assert loss is not None  # there are targets
    return loss


class Trainer(Loop[RunConfig]):
    """A pretraining."""

    def __init__(
        self,
        config: RunConfig,
        model: LanguageModel,
        data: SampleSource,
        held_out: dict[str, TokenDataset],
        claim: Claim,
        device: torch.device,
    ) -> None:
        self.model, self.data, self.held_out = model, data, held_out
        self.length, settings = config.data.sequence_length, config.training
        self.global_batch = settings.global_batch(self.length)
        self.graphs = compile_blocks(model.decoder.blocks) if settings.compile else None
        engine = Engine(
            model,
            training_loss,
            config.optimizer,
            config.zero,
            settings.precision,
            settings.micro_batch,
            settings.accumulation(self.length, dist.get_world_size()),
            device,
            functools.partial(model.initialize_unit, config.seed)
            if next(model.parameters()).is_meta
            else None,
        )
        super().__init__(config, engine, claim, config.steps, device)
        self.end_token = data.eod_id if config.data.mask_documents else None
        self.adaptive: AdaptiveRefinements | None = None
        if config.thoughts.residual_target is not None:
            self.adaptive = AdaptiveRefinements(model.method, self.progress.refinements)
        self.residuals: Tensor | None = None  # of the last step, where it was measured
        self.thoughts: dict[int, Tensor] = {}  # likewise, how large what a slot read was
        self.rewinds = from_rank_0(read_rewinds(config.folder.rewinds, self.progress.step))
        self.progress.samples = samples_at(self.rewinds, self.progress.step, self.progress.samples)
        peak = peak_flops(device, settings.precision, config.monitor.peak_tflops)
        self.peak = peak * self.world if peak is not None else None
        self.flops: dict[Schedule, float] = {}

    def open(self, stack: ExitStack) -> None:
        """Open this rank's micro-batches from where the training stands."""
        if self.graphs is not None and self.monitor is not None:
            self.graphs.say = self.monitor.say
        if self.monitor is not None and self.config.folder.rewinds.is_file():
            write_rewinds(self.config.folder.rewinds, self.rewinds)  # without those after where it goes on
        self.streams = stack.enter_context(ExitStack())
        self.open_stream()

    def open_stream(self) -> None:
        """Read this rank's micro-batches from the next sample on."""
        settings, progress = self.config.training, self.progress
        stream = BatchStream(
            self.data, self.config.seed, self.global_batch, settings.micro_batch, self.rank, self.world, progress.samples
        )  # fmt: skip
        self.streams.close()
        self.stream = self.streams.enter_context(stream)

    def advance(self) -> None:
        """One optimizer step, then a line of metrics where it is due."""
        schedule = self.next_schedule()
        loss, lr = self.step(schedule)
        self.losses.append(loss)
        if self.logs(self.progress.step):
            residuals = self.residuals.tolist() if self.residuals is not None else []
            moved = {f"residual/{k}": residual for k, residual in enumerate(residuals, start=1)}
            sizes = {f"thought/{slot}": size.item() for slot, size in self.thoughts.items()}
            self.log(lr, refinements=schedule.refinements or None, **moved, **sizes)

    def assess(self) -> None:
        """A validation, and texts, where they are due."""
        step, every = self.progress.step, self.config.monitor.texts_every
        if step % self.config.validation.every == 0 or step == self.total:
            self.validate()
        if every is not None and step % every == 0:
            self.write_texts()

    def write_texts(self) -> None:
        """Let the model as it is write, on all ranks, since they may have to share its parameters."""
        from latentpt.report.texts import written_by  # what it imports is needed for texts alone

        self.mark(f"texts after step {self.progress.step}")
        with self.clock:
            found = self.engine.call(written_by, self.config)
        for number, (prompt, text) in enumerate(found, start=1):
            self.record(kind="text", number=number, prompt=prompt, text=text)

    def rewound(self) -> bool:
        """Go back to the last checkpoint before a spike, and on past the data read since, if training.rewind still allows it."""
        spike, self.spike = self.spike, None
        if spike is None or len(self.rewinds) >= self.config.training.rewind:
            return False
        self.tell(self.writer.settle())
        saved = from_rank_0(committed(self.config.folder.checkpoints))
        before = [path for path in saved if step_of(path) < spike.at]
        if not before:
            self.say(
                f"the loss spikes at step {spike.at}, and there is no checkpoint before it to go back to"
            )
            return False
        with self.clock:
            self.go_back(newest_intact(before), spike)
        return True

    def go_back(self, origin: Path, spike: Spike) -> None:
        """Go on from a checkpoint before the spike, with the samples that nobody has read yet."""
        folder, seen = self.config.folder, self.progress
        self.progress = checkpoint.load(origin, self.engine)
        step = self.progress.step
        self.rewinds.append(Rewind(to=step, at=spike.at, seen=seen.step, samples=seen.samples))
        if self.monitor is not None:
            checkpoint.set_aside_after(origin)
            write_rewinds(folder.rewinds, self.rewinds)
            self.monitor.rewind(step)
        self.progress.samples, self.progress.data = seen.samples, seen.data
        self.resume_watches()
        self.logged = (*self.logged[:2], self.clock.seconds)
        if self.adaptive is not None:
            self.adaptive.refinements = self.progress.refinements
        self.saved_at = step
        self.open_stream()
        self.record(kind="rewind", seen=seen.step, samples=seen.samples, **spike._asdict())

    def next_schedule(self) -> Schedule:
        """The schedule of the coming step, equal on all ranks."""
        if self.adaptive is not None:
            return self.adaptive.schedule(self.progress.step)
        return self.model.training_schedule(self.config.seed, self.progress.step)

    def step(self, schedule: Schedule) -> tuple[Tensor, float]:
        """One optimizer step; returns this rank's part of the loss (their mean over ranks is that of the global batch;
        on the device) and the learning rate."""
        progress, engine = self.progress, self.engine
        looks = self.adaptive is not None or self.logs(progress.step + 1)
        watch = Measured(self.phases.spent) if looks else Passes(self.phases.spent)
        loss = torch.zeros((), device=self.device)
        batches = [next(self.stream) for _ in range(engine.accumulation)]
        self.phases.spent("data")
        targets = self.targets_per_micro_batch(batches)
        losses = []
        for batch in batches:
            self.mark(f"step {progress.step + 1}")
            tokens = batch.to(self.device, non_blocking=True)
            nats = engine.accumulate(tokens, schedule, watch, self.end_token, targets)
            losses.append(nats.float())
            loss += losses[-1] / engine.accumulation
        lr = learning_rate(self.config.learning_rate, self.config.optimizer.lr, progress.step, self.total)
        average = self.config.average
        self.update(lr, average.share(progress.step, self.total) if average is not None else 0.0)
        if not engine.applied:
            self.keep_evidence(batches, losses, schedule, lr)
        tokens_read = self.global_batch * self.length
        progress.training_flops += tokens_read * self.flops_per_token(schedule)
        self.measure(watch)  # the step is over on the device too: `applied` has waited for it
        self.count_step(self.global_batch, tokens_read)
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

    def keep_evidence(
        self, batches: list[Tensor], losses: list[Tensor], schedule: Schedule, lr: float
    ) -> None:
        """Keep what a step was made of whose gradient was not finite, unless it has been done often enough."""
        progress = self.progress
        if progress.skipped >= self.config.monitor.skipped:
            return
        tensors = {"samples": torch.cat(batches).int(), "losses": torch.stack(losses)}
        facts = {
            "step": progress.step + 1,
            "samples": [progress.samples, progress.samples + self.global_batch],
            "seed": self.config.seed,
            "micro_batch": self.config.training.micro_batch,
            "ranks": self.world,
            "refinements": schedule.refinements,
            "lr": lr,
        }
        folder = self.config.folder.skipped / f"step-{progress.step + 1:08d}"
        keep_evidence(folder, self.rank, tensors, facts, [*self.engine.names], *self.norms())

    def measure(self, watch: Measured | Passes) -> None:
        """Average over ranks, on the device, what was measured in a step: residuals and sizes of what slots read."""
        if not isinstance(watch, Measured):
            self.residuals, self.thoughts = None, {}
            return
        residuals, sizes = watch.values().to(self.device), watch.norms()
        everything = torch.cat([residuals, *(size.view(1) for size in sizes.values())])
        dist.all_reduce(everything)
        everything /= self.world
        self.residuals = everything[: len(residuals)]
        self.thoughts = dict(zip(sizes, everything[len(residuals) :].unbind(), strict=True))
        if self.adaptive is not None:
            self.adaptive.observe(self.residuals.tolist())

    def flops_per_token(self, schedule: Schedule) -> float:
        """FLOPs of forward and backward per token under the schedule of a step."""
        if schedule not in self.flops:
            cost = schedule_cost(self.config.model, self.model.method, schedule, self.length)
            self.flops[schedule] = cost.total
        return self.flops[schedule]

    def validate(self) -> None:
        """Mean loss over the held-out samples by the training forward of this phase, over all ranks, and that of every source;
        of the average of the weights where there is one."""
        with self.clock, self.engine.average():
            sums = torch.stack([self.held_out_sums(dataset) for dataset in self.held_out.values()])
            dist.all_reduce(sums)
        total, count, *thought = sums.sum(0).tolist()
        each = {
            f"loss/{name}": (s / n).item()
            for name, (s, n, *_) in zip(self.held_out, sums, strict=True)
            if name
        }
        averaged = {"averaged": True} if self.engine.averaged else {}
        self.record(
            kind="validation", loss=total / count, **averaged, **each, **self.thinking(count, thought)
        )

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
        """Begin to write a checkpoint of this step."""
        if self.adaptive is not None:
            self.progress.refinements = self.adaptive.refinements
        super().save()

    def summary(self) -> dict[str, Any]:
        """The last losses."""
        return last_values(self.config.folder) if self.rank == 0 else {}

    def conclude(self) -> None:
        """The page about the run, with texts of its model once it has come to its end."""
        if self.monitor is None or not self.config.monitor.report:
            return
        from latentpt.report import report  # its drawings take a second to import

        writes = self.progress.step == self.total and self.parameters <= WRITING_PARAMETERS
        self.say(f"page: {report(self.config.folder.path, write=writes)}")

    def description(self) -> list[str]:
        """Size, length and cost."""
        config, per_step = self.config, self.global_batch * self.length
        flops = training_flops_per_token(config.model, config.thoughts, self.length, self.total)
        thoughts = config.thoughts
        return [
            f"{config.model.family} with {self.parameters:,} parameters, "
            f"{thoughts.method} with {thoughts.num_thoughts} thoughts a token",
            f"{self.total:,} steps of {per_step:,} tokens = {self.global_batch} samples of {self.length} "
            f"= {config.training.micro_batch} x {self.engine.accumulation} micro-batches x {self.world} ranks",
            f"{self.total * per_step:,} tokens of {self.data.num_tokens:,} in the shards "
            f"({self.total * self.global_batch / self.data.num_samples:.2f} epochs)",
            f"{flops:.4g} training FLOPs a token, {flops * self.total * per_step:.4g} in all",
        ]
