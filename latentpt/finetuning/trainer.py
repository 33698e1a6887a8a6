"""The fine-tuning: from its configuration to a model that reasons in latents, in its folder.

runs/NAME/
    config.yaml, versions.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json, STOP    as of every run
    tokenizer.json       the tokenizer with the markers
    left_out.txt         questions that could not be used, by reason
    stages/              where LT-Tuning put its latents
    best/                the best checkpoint, ready for use, see `reasoner`
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from latentpt.config import ConfigError
from latentpt.files import write_text
from latentpt.finetuning.accuracy import answer
from latentpt.finetuning.batches import Batch, batch_indices, collate, latents, learnt
from latentpt.finetuning.coconut import Markers, coconut_row, drawn_stage, removed_and_latents
from latentpt.finetuning.config import FinetuneConfig
from latentpt.finetuning.insertion import Insertions
from latentpt.finetuning.lora import add_lora, merged_state
from latentpt.finetuning.loss import summed_loss, training_loss
from latentpt.finetuning.lt_tuning import latent_row, plain_row
from latentpt.finetuning.preparing import BEST, Prepared, prepare, usable_questions
from latentpt.finetuning.reasoner import Recipe, save_reasoner
from latentpt.finetuning.report import report
from latentpt.finetuning.rows import Pieces, Row
from latentpt.finetuning.stages import Moment, Plan, Stage, planned_stages
from latentpt.run import read_metrics
from latentpt.run.checkpoints import Progress
from latentpt.training import checkpoint
from latentpt.training.engine import MOMENTS, Engine, start_processes
from latentpt.training.guard import SkippedSteps, StopSignals
from latentpt.training.learning_rate import learning_rate
from latentpt.training.monitor import Clock, Monitor
from latentpt.training.origin import Start, changes, find_origin, prepare_folder

FIXED = ("seed", "mode", "start.", "data.", "markers.", "fill.", "training.batch", "training.lora.")
"""A resumed training must go on with these as they were, or it would not be the same training."""
FIXED_BY_MODE = {"cot": "training.epochs", "no_cot": "training.epochs", "lt_tuning": "lt."}
"""And with these; the other modes have their curriculum."""


def finetune(config: FinetuneConfig, begin: Start = "auto") -> Progress:
    """Train to the end or until asked to stop; the state is saved in both cases. Called by every process.

    Raises ConfigError or DataError for input that cannot work, before anything is trained, and TrainingDivergedError
    when gradients were not finite for training.max_skipped steps in a row.
    """
    rank, world, device = start_processes()
    accumulation(config, world)
    as_run = cast(Any, config)  # find_origin and prepare_folder want a folder and a dump, which this one has
    origin = find_origin(as_run, begin)
    if origin is not None:
        for key, old, new in changes(as_run, origin):
            if key.startswith((*FIXED, FIXED_BY_MODE.get(config.mode, "coconut."))):
                raise ConfigError(
                    f"{origin} is a checkpoint of another training: {key} is {old} there and {new} here; choose "
                    "another output folder, or set the old one aside with --fresh"
                )
    dist.barrier()
    side = config.folder.path.with_name(config.folder.path.name + ".tokenizer.json")
    if rank != 0:
        dist.barrier()  # until the tokenizer is there
    try:
        prepared = prepare(config, side, write=rank == 0)
    except BaseException:
        side.unlink(missing_ok=True)
        raise
    if rank == 0:
        dist.barrier()
    if config.training.lora.rank:
        trained = [*set(prepared.recipe.markers or ())]
        add_lora(prepared.reasoner.language.decoder, config.training.lora, trained, config.seed)
    dist.barrier()
    if rank == 0:
        prepare_folder(as_run, origin, begin, device)
        side.replace(config.folder.path / "tokenizer.json")
        write_text(config.folder.path / "left_out.txt", "".join(f"{line}\n" for line in prepared.notes))
    dist.barrier()
    prepared.tokenizer.path = config.folder.path / "tokenizer.json"
    return FineTuner(config, prepared, origin, device).run()


def accumulation(config: FinetuneConfig, world: int) -> int:
    """Micro-batches per step and rank of the default batch; raises ConfigError if that is no whole number."""
    count = _micro_batches(config.training.batch, config.training.micro_batch, world)
    for stage in planned_stages(config):
        if stage.batch % (count * world):
            raise ConfigError(
                f"lt.stages has batch = {stage.batch}, which {count} micro-batches on {world} ranks do not divide; the "
                f"nearest value that works is {max(1, round(stage.batch / (count * world))) * count * world}"
            )
    return count


def _micro_batches(batch: int, micro: int, world: int) -> int:
    """batch / (micro world)."""
    if batch % (micro * world):
        fitting = [size for size in range(1, batch + 1) if batch % (size * world) == 0]
        near = min(fitting, key=lambda size: abs(size - micro), default=None)
        way_out = (
            f"training.micro_batch = {near}" if near else f"training.batch = {max(1, batch // world) * world}"
        )
        raise ConfigError(
            f"a batch of {batch} questions cannot be divided into micro-batches of {micro} on {world} "
            f"rank{'s' if world > 1 else ''}; the nearest value that works is {way_out}"
        )
    return batch // (micro * world)


class FineTuner:
    """One fine-tuning in one process of several. `run` is the loop."""

    def __init__(
        self, config: FinetuneConfig, prepared: Prepared, origin: Path | None, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.reasoner, self.recipe = prepared.reasoner, prepared.recipe
        self.tokenizer, self.notes = prepared.tokenizer, prepared.notes
        self.train, self.validation = prepared.train, prepared.validation
        self.plan = Plan(prepared.stages, len(self.train))
        self.total = self.plan.steps
        self.end = min(self.total, config.training.stop_at or self.total)
        settings = config.training
        self.engine = Engine(
            self.reasoner, training_loss, config.optimizer, config.zero, settings.precision, settings.micro_batch,
            accumulation(config, self.world), device,
        )  # fmt: skip
        self.progress = checkpoint.load(origin, self.engine) if origin is not None else Progress()
        self.skips = SkippedSteps(settings.max_skipped, self.progress.skipped, self.progress.skipped_in_a_row)
        self.insertions = Insertions(config, self.engine, self.train, self.device)
        self.monitor: Monitor | None = None
        self.saved_at = self.progress.step if origin is not None else None
        self.logged = (self.progress.tokens, self.progress.seconds)
        self.best = self.best_so_far()

    # ---------------------------------------------------------------------------------------------- the loop

    def run(self) -> Progress:
        """Train to the end or until asked to stop; the state is saved when this returns."""
        folder, monitor = self.config.folder, self.config.monitor
        with ExitStack() as stack:
            signals = stack.enter_context(StopSignals(folder.stop_file))
            if self.rank == 0:
                events = folder.tensorboard if monitor.tensorboard else None
                self.monitor = stack.enter_context(
                    Monitor(folder.metrics, events, self.progress.step, self.total)
                )
            self.introduce()
            self.clock = Clock(self.progress.seconds)
            reason = None
            while self.progress.step < self.end and reason is None:
                moment = self.plan.at(self.progress.step)
                if moment.step_in_stage == 0:
                    self.enter(moment)
                loss, lr = self.step(moment)
                self.after_step(moment, loss, lr)
                reason = signals.reason()
            self.finish(reason)
        return self.progress

    def enter(self, moment: Moment) -> None:
        """A stage begins: its data is made, its optimizer may start anew."""
        if moment.stage.insertion is not None:
            with self.clock:
                self.insertions.make(moment.stage, self.recipe)
        if moment.stage.reset:
            shapes = self.engine.shapes
            zeros = ((name, {key: torch.zeros(shape) for key in MOMENTS}) for name, shape in shapes.items())
            self.engine.scatter(zeros, 0)
        self.say(f"stage {moment.stage.number} begins at step {self.progress.step}")

    def step(self, moment: Moment) -> tuple[Tensor, float]:
        """One optimizer step; returns this rank's part of the mean loss and the learning rate."""
        stage, progress, settings = moment.stage, self.progress, self.config.training
        indices = batch_indices(len(self.train), stage.batch, self.config.seed, moment.epoch, moment.batch)
        rows = [self.row(index, moment) for index in indices]
        micro_batches, micro = self.engine.accumulation, self.micro(stage)
        count = max(1, learnt(rows))
        loss = torch.zeros((), device=self.device)
        for first in range(0, len(rows), micro * self.world):
            of_all = rows[first : first + micro * self.world]
            mine = of_all[self.rank * micro :][:micro]
            batch = self.batch(mine, stage, of_all).to(self.device)
            # The engine averages micro-batches and ranks; a nat's share makes the mean over the step's tokens of it.
            share = micro_batches * self.world / count
            refills = settings.refills if self.jacobi(stage) else None
            schedule = self.reasoner.language.training_schedule(self.config.seed, progress.step)
            loss += self.engine.accumulate(batch, self.recipe, stage.fill, share, refills, schedule).float()
        loss /= micro_batches
        lr = learning_rate(
            self.config.learning_rate, self.config.optimizer.lr, *self.place_in_schedule(moment)
        )
        self.engine.step(lr)
        progress.step += 1
        progress.samples += len(rows)
        progress.tokens += sum(len(row.ids) for row in rows)
        self.skips.count(progress.step, self.engine.applied)
        progress.skipped, progress.skipped_in_a_row = self.skips.total, self.skips.in_a_row
        return loss, lr

    def micro(self, stage: Stage) -> int:
        """Rows of a micro-batch: stages of other batches accumulate as often, over larger or smaller ones."""
        return stage.batch // (self.engine.accumulation * self.world)

    def place_in_schedule(self, moment: Moment) -> tuple[int, int]:
        """Step and length of what the learning rate's shape spans."""
        if self.config.mode == "lt_tuning":
            return moment.step_in_stage, moment.stage_steps
        return self.progress.step, self.total

    # ---------------------------------------------------------------------------------------------- rows

    def row(self, index: int, moment: Moment) -> Row:
        """The training row of a question at a moment, a function of (seed, moment, index)."""
        pieces = self.train[index]
        if self.config.mode == "lt_tuning":
            counts = self.insertions.counts(moment.stage, index)
            return plain_row(pieces) if counts is None else latent_row(pieces, counts, self.latent)
        rules = self.config.coconut
        stage = drawn_stage(
            rules, moment.stage.number, len(pieces.steps), self.config.seed, moment.epoch, index
        )
        return coconut_row(pieces, self.config.mode, rules, stage, self.markers)

    @property
    def markers(self) -> Markers:
        """Ids of the markers; any where there are none."""
        return Markers(*(self.recipe.markers or (-1, -1, -1)))

    @property
    def latent(self) -> int:
        """Id of the latent token."""
        return self.markers.latent

    def jacobi(self, stage: Stage) -> bool:
        """Whether latents of a stage are found by a fixed number of full passes."""
        feeds_back = stage.fill is not None and stage.fill != "pause"
        return feeds_back and self.config.training.engine == "jacobi"

    def batch(self, rows: list[Row], stage: Stage, of_all: list[Row]) -> Batch:
        """A batch that makes as many passes on every rank: those that the rows `of_all` ranks need."""
        feeds_back = stage.fill is not None and stage.fill != "pause"
        cut = (feeds_back and not self.jacobi(stage)) or self.config.mode == "pause_multipass"
        passes = 1 + max(latents(row, self.latent) for row in of_all) if cut else 1
        return collate(rows, self.latent, cut, passes)

    # ---------------------------------------------------------------------------------------------- measuring

    def after_step(self, moment: Moment, loss: Tensor, lr: float) -> None:
        """What is due after a step: a line of metrics, accuracy, a checkpoint."""
        step = self.progress.step
        if self.monitor is not None:
            self.monitor.advance()
        last = step == self.total
        if step % self.config.monitor.every == 0 or step == 1 or last:
            self.log(moment, loss, lr)
        if self.plan.ends_epoch(step - 1):
            epoch = moment.epoch + 1
            stage_ends = moment.step_in_stage + 1 == moment.stage_steps
            if epoch % self.config.answers.every == 0 or stage_ends:
                self.measure(moment)
        if step % self.config.checkpoint.every == 0 or last:
            self.save()

    def log(self, moment: Moment, loss: Tensor, lr: float) -> None:
        """Write the line of this step."""
        dist.all_reduce(loss)
        progress, seconds = self.progress, self.clock.seconds
        elapsed = max(seconds - self.logged[1], 1e-9)
        speed = (progress.tokens - self.logged[0]) / elapsed
        self.logged = (progress.tokens, seconds)
        self.record(
            kind="train",
            loss=loss.item() / self.world,
            grad_norm=self.engine.grad_norm,
            lr=lr,
            stage=moment.stage.number,
            epoch=moment.epoch + 1,
            tokens_per_second=speed,
            mfu=None,
            skipped=progress.skipped,
        )

    def measure(self, moment: Moment) -> None:
        """Loss and accuracy on the validation questions at the stage reached; the best checkpoint is kept."""
        with self.clock:
            recipe = self.recipe_at(moment)
            loss = self.validation_loss(moment)
            right, asked, tokens, thought = self.answered(self.validation, recipe, moment.stage)
        accuracy = right / asked
        self.record(
            kind="validation",
            loss=loss,
            accuracy=accuracy,
            generated=tokens / asked,
            latents=thought / asked,
            stage=moment.stage.number,
            epoch=moment.epoch + 1,
            rows=asked,
        )
        self.say(
            f"stage {moment.stage.number}  epoch {moment.epoch + 1}  accuracy {100 * accuracy:.1f} % "
            f"({right} of {asked}), {tokens / asked:.1f} tokens an answer, {thought / asked:.1f} of them latents"
        )
        decides = self.config.answers.best == "any" or moment.order + 1 == len(self.plan.stages) or (
            moment.stage.number == self.plan.stages[-1].number
        )  # fmt: skip
        if decides and (self.best is None or accuracy > self.best):
            self.best = accuracy
            with self.clock:
                self.keep_best(recipe)

    def recipe_at(self, moment: Moment) -> Recipe:
        """How the model is used at a stage."""
        stage = moment.stage
        count = 0
        if self.config.mode != "lt_tuning" and stage.fill is not None:
            rules = self.config.coconut
            count = removed_and_latents(rules, stage.number, rules.max_latent_stage)[1]
        switch = "never" if stage.fill is None else self.recipe.switch
        values = {"stage": stage.number, "latents": count, "kind": stage.fill, "switch": switch}
        return self.recipe.model_copy(update=values)

    def answered(self, questions: list[Pieces], recipe: Recipe, stage: Stage) -> tuple[int, int, int, int]:
        """Right answers, questions, generated tokens and latents over all ranks."""
        alone = self.config.zero.stage == 3  # ranks share every forward, so all of them answer everything
        mine = questions if alone else questions[self.rank :: self.world]
        settings = self.config.answers
        found = self.engine.call(
            answer, recipe, self.tokenizer, mine, settings.batch, settings.max_new_tokens, stage.fill
        )
        sums = torch.tensor(list(found), dtype=torch.float64, device=self.device)
        if not alone:
            dist.all_reduce(sums)
        right, asked, tokens, thought = map(int, sums.tolist())
        return right, asked, tokens, thought

    def validation_loss(self, moment: Moment) -> float:
        """Mean nats per learnt token of the validation questions at a stage, in plain text for lt_tuning."""
        stage = moment.stage
        if self.config.mode == "lt_tuning":
            rows = [plain_row(pieces) for pieces in self.validation]
        else:
            rows = [
                coconut_row(pieces, self.config.mode, self.config.coconut, stage.number, self.markers)
                for pieces in self.validation
            ]
        micro, total = self.config.training.micro_batch, torch.zeros((), device=self.device)
        together = micro * self.world
        refills = self.config.training.refills if self.jacobi(stage) else None
        fill = self.reasoner.fill(self.recipe, stage.fill)
        for first in range(0, len(rows), together):
            of_all = rows[first : first + together]
            # A rank without rows of its own runs the model all the same: others may wait for its parameters.
            mine = of_all[self.rank * micro :][:micro]
            batch = self.batch(mine or of_all[:1], stage, of_all).to(self.device)
            loss = self.engine.call(summed_loss, batch, fill, refills)
            total += loss if mine else 0
        dist.all_reduce(total)
        return total.item() / max(1, learnt(rows))

    # ---------------------------------------------------------------------------------------------- keeping

    def keep_best(self, recipe: Recipe) -> None:
        """Write the folder `best`."""
        state = self.whole_state()
        if self.rank == 0:
            save_reasoner(self.config.folder.path / BEST, state, recipe, self.tokenizer)
        dist.barrier()

    def whole_state(self) -> dict[str, Tensor]:
        """Every parameter, whole, LoRA merged; collective."""
        if self.config.training.lora.rank:
            return {name: tensor.float() for name, tensor in merged_state(self.reasoner).items()}
        return {name: self.engine.gather(name)["weight"].clone() for name in self.engine.names}

    def best_so_far(self) -> float | None:
        """The accuracy of the checkpoint in `best`, by the metrics up to the step from which the training goes on."""
        last = self.plan.stages[-1].number
        lines = [line for line in read_metrics(self.config.folder.metrics) if line["kind"] == "validation"]
        known = [
            line["accuracy"] for line in lines
            if line["step"] <= self.progress.step
            and (self.config.answers.best == "any" or line["stage"] == last)
        ]  # fmt: skip
        return max(known, default=None)

    def record(self, kind: str, **values: Any) -> None:
        """Hand a line of measurements to the monitor of the one rank that has it."""
        progress = self.progress
        progress.seconds = self.clock.seconds
        if self.monitor is not None:
            place = {
                "kind": kind,
                "step": progress.step,
                "tokens": progress.tokens,
                "seconds": progress.seconds,
            }
            self.monitor.record(place | values)

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.monitor is not None:
            self.monitor.say(text)

    def save(self) -> None:
        """Write a checkpoint of this step and remove those that need not be kept."""
        settings, folder = self.config.checkpoint, self.config.folder.checkpoints
        self.progress.seconds = self.clock.seconds
        with self.clock:
            checkpoint.save(folder, self.engine, self.progress, self.config.model_dump(mode="json"))
            if self.rank == 0:
                checkpoint.prune(folder, settings.keep_last, settings.keep_every)
        self.saved_at = self.progress.step

    def finish(self, reason: str | None) -> None:
        """Save what is not saved yet; at the end of the training measure the test questions and write the summary."""
        folder, step = self.config.folder, self.progress.step
        if self.saved_at != step and step > 0:
            self.save()
        if step < self.total:
            why = reason or f"training.stop_at = {self.config.training.stop_at}"
            self.say(f"stopped at step {step} of {self.total} ({why}); run again to go on")
            if self.rank == 0:
                folder.stop_file.unlink(missing_ok=True)
            return
        tests = self.test()
        if self.rank == 0:
            folder.stop_file.unlink(missing_ok=True)
            summary = {
                "step": step,
                "tokens": self.progress.tokens,
                "seconds": self.progress.seconds,
                "skipped": self.progress.skipped,
                "parameters": sum(torch.Size(shape).numel() for shape in self.engine.shapes.values()),
                "best_validation_accuracy": self.best,
                "test": tests,
            }
            write_text(folder.summary, json.dumps(summary, indent=1) + "\n")
            found, page = report(folder.path)
            self.say(f"{found.verdict} See {page}")

    def test(self) -> dict[str, Any]:
        """Accuracy of the best checkpoint on the test files, by the first rank."""
        if self.rank != 0 or not self.config.data.test:
            return {}
        from latentpt.finetuning.reasoner import load_reasoner

        reasoner, recipe, tokenizer = load_reasoner(self.config.folder.path / BEST)
        reasoner.to(self.device)
        settings, found = self.config.answers, {}
        for name, path in self.config.data.test.items():
            questions, notes = usable_questions(
                self.config, path, None, f"data.test.{name}", tokenizer, self.plan.stages, recipe, []
            )
            result = answer(reasoner, recipe, tokenizer, questions, settings.batch, settings.max_new_tokens)
            found[name] = {
                "accuracy": result.right / result.asked,
                "rows": result.asked,
                "tokens": result.tokens / result.asked,
                "latents": result.latents / result.asked,
            }
            self.say(f"test {name}: accuracy {100 * result.right / result.asked:.1f} % of {result.asked}")
            for note in notes:
                self.say(note)
        return found

    def introduce(self) -> None:
        """Print what follows from the configuration, once."""
        config, parameters = self.config, sum(torch.Size(s).numel() for s in self.engine.shapes.values())
        state = f"continues at step {self.progress.step}" if self.progress.step else "starts"
        stages = ", ".join(
            f"{stage.number} x {stage.epochs}" + (f" ({stage.fill})" if stage.fill else "")
            for stage in self.plan.stages
        )
        self.say(
            f"{config.folder.path} {state}: {config.mode} with {parameters:,} trained parameters\n"
            f"  {self.total:,} steps over {len(self.train):,} questions; stages x epochs: {stages}\n"
            f"  {len(self.validation):,} validation questions; {self.engine.description} on {self.device.type}, "
            f"since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
        for note in self.notes:
            self.say(f"  {note}")
