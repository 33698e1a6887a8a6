"""The fine-tuning: from its configuration to a model that reasons in latents, in its folder.

runs/NAME/
    config.yaml, versions.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json, STOP    as of every run
    tokenizer.json       the tokenizer with the markers
    left_out.txt         questions that could not be used, by reason
    stages/              where LT-Tuning put its latents
    best/                the best checkpoint, ready for use, see `reasoner`
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentpt.config import ConfigError, nearest_divisor
from latentpt.data.errors import DataError
from latentpt.files import write_bytes, write_text
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
from latentpt.run.command import AUTO, Start
from latentpt.training.engine import Engine, start_processes
from latentpt.training.learning_rate import learning_rate
from latentpt.training.loop import Loop
from latentpt.training.origin import Claim, claimed, from_rank_0
from latentpt.training.sinks import check_sinks

FIXED = (
    "seed",
    "mode",
    "optimizer.kind",
    "start.",
    "data.",
    "markers.",
    "fill.",
    "training.batch",
    "training.lora.",
)
"""A resumed training must go on with these as they were, or it would not be the same training."""
FIXED_BY_MODE = {"cot": "training.epochs", "no_cot": "training.epochs", "lt_tuning": "lt."}
"""And with these; the other modes have their curriculum."""


def finetune(config: FinetuneConfig, begin: Start = AUTO) -> Progress:
    """Train to the end or until asked to stop; the state is saved in both cases. Called by every process.

    Raises ConfigError or DataError for input that cannot work, before anything is trained, and TrainingDivergedError
    when gradients were not finite for training.max_skipped steps in a row.
    """
    rank, world, device = start_processes()
    accumulation(config, world)
    check_sinks(config.monitor)
    fixed = [*FIXED, FIXED_BY_MODE.get(config.mode, "coconut.")]
    with claimed(config, begin, fixed, identity(config)) as claim:
        prepared = prepare(config)
        claim.make_ready(device)
        if rank == 0:
            write_bytes(prepared.tokenizer.path, prepared.tokenizer_json)
            write_text(config.folder.path / "left_out.txt", "".join(f"{line}\n" for line in prepared.notes))
        return FineTuner(config, prepared, claim, device).run()


def identity(config: FinetuneConfig) -> dict[str, str]:
    """sha256 of the file of training questions, by its name; raises DataError if there is none."""
    path = Path(config.data.train)
    if not path.is_file():
        raise DataError(f"data.train = {path}: there is no such file")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


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
        near = nearest_divisor(batch // world, micro) if batch % world == 0 else None
        way_out = (
            f"training.micro_batch = {near}"
            if near
            else f"training.batch = {max(1, round(batch / (micro * world))) * micro * world}"
        )
        raise ConfigError(
            f"a batch of {batch} questions cannot be divided into micro-batches of {micro} on {world} "
            f"rank{'s' if world > 1 else ''}; the nearest value that works is {way_out}"
        )
    return batch // (micro * world)


class FineTuner(Loop[FinetuneConfig]):
    """A fine-tuning."""

    def __init__(
        self, config: FinetuneConfig, prepared: Prepared, claim: Claim, device: torch.device
    ) -> None:
        self.reasoner, self.recipe = prepared.reasoner, prepared.recipe
        self.tokenizer, self.notes = prepared.tokenizer, prepared.notes
        self.train, self.validation = prepared.train, prepared.validation
        self.plan = Plan(prepared.stages, len(self.train))
        settings, count = config.training, accumulation(config, dist.get_world_size())
        if settings.lora.rank:
            trained = [*set(self.recipe.markers or ())]
            add_lora(self.reasoner.language.decoder, settings.lora, trained, config.seed)
        engine = Engine(
            self.reasoner, training_loss, config.optimizer, config.zero, settings.precision, settings.micro_batch,
            count, device,
        )  # fmt: skip
        super().__init__(config, engine, claim, self.plan.steps, device)
        self.insertions = Insertions(config, engine, self.train, device)
        self.best = self.best_so_far()

    # ---------------------------------------------------------------------------------------------- steps

    def advance(self) -> None:
        """One optimizer step and a line of metrics where it is due; a stage may begin before it."""
        moment = self.plan.at(self.progress.step)
        if moment.step_in_stage == 0:
            self.enter(moment)
        loss, lr = self.step(moment)
        self.losses.append(loss)
        if self.logs(self.progress.step):
            self.log(lr, stage=moment.stage.number, epoch=moment.epoch + 1)

    def assess(self) -> None:
        """Accuracy where it is due."""
        moment = self.plan.at(self.progress.step - 1)
        epoch = moment.epoch + 1
        if moment.ends_epoch and (epoch % self.config.answers.every == 0 or moment.ends_stage):
            self.measure(moment)

    def enter(self, moment: Moment) -> None:
        """A stage begins: its data is made, its optimizer may start anew."""
        if moment.stage.insertion is not None:
            with self.clock:
                self.insertions.make(moment.stage, self.recipe, self.mark)
        if moment.stage.reset:
            engine = self.engine
            engine.scatter(
                (
                    (name, {key: torch.zeros(shape) for key in engine.moments(name)})
                    for name, shape in engine.shapes.items()
                ),
                0,
            )
        self.say(f"stage {moment.stage.number} begins at step {self.progress.step}")

    def step(self, moment: Moment) -> tuple[Tensor, float]:
        """One optimizer step; returns this rank's part of the mean loss and the learning rate."""
        stage, settings = moment.stage, self.config.training
        indices = batch_indices(len(self.train), stage.batch, self.config.seed, moment.epoch, moment.batch)
        rows = [self.row(index, moment) for index in indices]
        self.phases.spent("data")
        micro_batches, micro = self.engine.accumulation, self.micro(stage)
        count = max(1, learnt(rows))
        loss = torch.zeros((), device=self.device)
        for first in range(0, len(rows), micro * self.world):
            of_all = rows[first : first + micro * self.world]
            mine = of_all[self.rank * micro :][:micro]
            self.mark(f"step {self.progress.step + 1}")
            batch = self.batch(mine, stage, of_all).to(self.device)
            # The engine averages micro-batches and ranks; a nat's share makes the mean over the step's tokens of it.
            share = micro_batches * self.world / count
            refills = settings.refills if self.jacobi(stage) else None
            schedule = self.reasoner.language.training_schedule(self.config.seed, self.progress.step)
            loss += self.engine.accumulate(batch, self.recipe, stage.fill, share, refills, schedule).float()
        loss /= micro_batches
        peak = self.config.optimizer.lr if stage.lr is None else stage.lr
        lr = learning_rate(self.config.learning_rate, peak, *self.place_in_schedule(moment))
        self.update(lr)
        self.count_step(len(rows), sum(len(row.ids) for row in rows))
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

    def measure(self, moment: Moment) -> None:
        """Loss and accuracy on the validation questions at the stage reached; the best checkpoint is kept."""
        with self.clock:
            recipe = self.recipe_at(moment)
            loss = self.validation_loss(moment)
            right, asked, tokens, thought = self.answered(self.validation, recipe, moment.stage)
        accuracy = right / asked
        if self.decides(moment.stage.number) and (self.best is None or accuracy > self.best):
            self.best = accuracy
            with self.clock:
                self.keep_best(recipe)
        self.record(  # last: a training that ends before it measures again, and keeps the best one again
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
            answer, recipe, self.tokenizer, mine, settings.batch, settings.max_new_tokens, stage.fill, None, None,
            self.answering,
        )  # fmt: skip
        sums = torch.tensor(list(found), dtype=torch.float64, device=self.device)
        if not alone:
            dist.all_reduce(sums)
        right, asked, tokens, thought = map(int, sums.tolist())
        return right, asked, tokens, thought

    def answering(self, count: int) -> None:
        """A batch of questions has been answered."""
        self.mark(f"answers after step {self.progress.step}")

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
            self.mark(f"validation after step {self.progress.step}")
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
            with self.engine.whole_parameters():
                return {name: tensor.float().clone() for name, tensor in merged_state(self.reasoner).items()}
        return {name: self.engine.gather(name)["weight"].clone() for name in self.engine.names}

    def decides(self, stage: int) -> bool:
        """Whether a measurement at the stage of that number may make a checkpoint the best."""
        return self.config.answers.best == "any" or stage == self.plan.stages[-1].number

    def best_so_far(self) -> float | None:
        """The accuracy of the checkpoint in `best`, by the metrics up to the step from which the training goes on."""
        lines = read_metrics(self.config.folder.metrics) if self.rank == 0 else []
        known = [
            line["accuracy"] for line in lines
            if line["kind"] == "validation" and line["step"] <= self.progress.step and self.decides(line["stage"])
        ]  # fmt: skip
        return from_rank_0(max(known, default=None))  # one file, one answer: to keep a best one is collective

    def summary(self) -> dict[str, Any]:
        """Accuracies."""
        tests = self.test()
        dist.barrier()  # the other ranks stay, and are seen to live, while the first one measures
        return {"best_validation_accuracy": self.best, "test": tests}

    def conclude(self) -> None:
        """The page that says whether the latents did anything."""
        if self.rank == 0 and self.progress.step == self.total:
            found, page = report(self.config.folder.path)
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
            result = answer(
                reasoner, recipe, tokenizer, questions, settings.batch, settings.max_new_tokens, None, None, None,
                self.answering,
            )  # fmt: skip
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

    def description(self) -> list[str]:
        """Stages, questions, what was left out."""
        stages = ", ".join(
            f"{stage.number} x {stage.epochs}" + (f" ({stage.fill})" if stage.fill else "")
            for stage in self.plan.stages
        )
        return [
            f"{self.config.mode} with {self.parameters:,} trained parameters",
            f"{self.total:,} steps over {len(self.train):,} questions; stages x epochs: {stages}",
            f"{len(self.validation):,} validation questions",
            *self.notes,
        ]
