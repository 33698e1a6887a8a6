"""Configuration of one fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from latentpt.config import Count, Long, NotNegative, Positive, Section, Share, Whole
from latentpt.finetuning.answers import Extraction
from latentpt.finetuning.fills import Kind
from latentpt.modeling.config import ModelConfig, Recompute, recompute_by_name
from latentpt.run.folder import FolderConfig, load_folder_config
from latentpt.run.sections import (
    CheckpointConfig,
    LearningRateConfig,
    MonitorConfig,
    OptimizerConfig,
    ZeroConfig,
    check_recomputation,
)
from latentpt.thoughts.config import ThoughtsConfig

Mode = Literal["cot", "no_cot", "coconut", "no_thoughts", "pause", "pause_multipass", "lt_tuning"]


class StartConfig(Section):
    """Where the weights come from: one of run, model and fresh; of `run` the best checkpoint is taken."""

    run: str = ""
    """Folder of a fine-tuning or of a pretraining run."""
    model: str = ""
    """Hugging Face folder, an export or a llama2.c .bin."""
    fresh: ModelConfig | None = None
    """Fresh weights of this size; the vocabulary is the tokenizer's."""
    thoughts: ThoughtsConfig = ThoughtsConfig()
    """fresh: what the model thinks before every token."""
    tokenizer: str = ""
    """tokenizer.json, .model or a folder with one; empty: the one that comes with the weights."""

    @model_validator(mode="after")
    def _check(self) -> StartConfig:
        given = [name for name in ("run", "model", "fresh") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"start.{given[0]} and start.{given[1]} are both given; set one of them to null")
        return self


class DataConfig(Section):
    """Questions with their chains of thought, see latentpt.finetuning.examples."""

    train: str = ""
    """File of training questions."""
    validation: str = ""
    """File of questions whose accuracy is watched and decides which checkpoint is best."""
    test: dict[str, str] = {}
    """Files of questions measured once at the end, by name."""
    rows: Count | None = None
    """Training questions read, from the start of the file; null means all."""
    max_length: Count = 1024
    """Longest row in tokens, latents included; questions that are longer at any stage are left out and counted."""


class MarkerConfig(Section):
    """Tokens added to the vocabulary."""

    start: str = "<|start-latent|>"
    """Coconut: stands before the latents."""
    end: str = "<|end-latent|>"
    """Coconut: stands after them."""
    latent: str = "<|latent|>"
    """Stands at latent positions."""
    copy_row: str = ""
    """Token whose embedding and head rows the new ones start from (Coconut: <<; LT-Tuning: emm); empty: the mean row."""


class CoconutConfig(Section):
    """The curriculum that replaces steps of the chain by latents (arXiv 2412.06769)."""

    c_thought: Whole = 1
    """Latents for every removed step."""
    epochs: Count = 50
    """Last epoch of the curriculum; skipped ones count."""
    epochs_per_stage: Count = 5
    """Epochs until one more step is removed."""
    skip_epochs: Whole = 0
    """Epochs left out at the beginning (resume): a chain-of-thought checkpoint takes the place of stage 0."""
    max_latent_stage: Whole = 6
    """Steps replaced by latents at most; in later stages the whole chain is removed."""
    pad_latent_to_max: bool = True
    """Whether rows with fewer steps get as many latents as the others; false shows the number of steps."""
    uniform_prob: Share = 0.0
    """Probability that a row is drawn at any stage from none to all of its steps."""
    curriculum: bool = True
    """false: the last stage from the beginning."""
    reset: Literal["stage", "epoch", "never"] = "stage"
    """When AdamW starts anew: at a change of stage, at every epoch (the released code) or never."""
    lr: tuple[Positive, ...] = ()
    """Learning rate of each stage from 0 on, the last one for all later stages; empty: optimizer.lr in all of them."""

    @model_validator(mode="after")
    def _check(self) -> CoconutConfig:
        if self.skip_epochs >= self.epochs:
            raise ValueError(
                f"coconut.skip_epochs = {self.skip_epochs} must be below coconut.epochs = {self.epochs}"
            )
        return self


class LtStage(Section):
    """One stage of LT-Tuning."""

    epochs: Count
    """Passes over the training questions."""
    batch: Count | None = None
    """Questions per step; null means training.batch."""
    lr: Positive | None = None
    """Learning rate; null means optimizer.lr."""
    fill: Kind | None = None
    """What latents read; null: plain text without latents."""
    tau: Share = 0.7
    """Latents go before gold tokens that the stage before gave a probability below tau."""
    sites: NotNegative | None = None
    """Places per row: a number, below 1 a share of the candidates, null all of them."""
    insertion: Share = 1.0
    """Probability that a chosen place gets a latent."""
    second: Share = 0.0
    """Probability of a second one right after (the released code)."""
    most: Count = 2
    """Latents at one place at most; with `second` = 0 their number is drawn evenly from 1 to most (the paper's k)."""


PAPER = (
    LtStage(epochs=1),
    LtStage(epochs=2, fill="hidden", tau=0.7, most=2),
    LtStage(epochs=7, fill="fusion", tau=0.7, most=2),
)
RELEASED = (
    LtStage(epochs=1),
    LtStage(epochs=1, fill="hidden", tau=0.3, sites=10, insertion=0.85, second=0.15),
    LtStage(epochs=1, fill="fusion", tau=0.2, sites=16, insertion=0.95, second=0.2),
)


class LtConfig(Section):
    """Latent Thoughts Tuning (arXiv 2602.10229)."""

    preset: Literal["paper", "released"] = "paper"
    """Where the paper and the released code differ: stages, top-p and what crosses it, layer, wording."""
    stages: tuple[LtStage, ...] | None = None
    """The stages in order; null means the preset's."""
    text: Literal["paper", "released", "plain"] | None = None
    """Wording: paper ".. The final answer is:\\n### 7", released the same with "## Step 1:" before every step, plain
    the steps and "### 7"; null means the preset's."""
    switch: Literal["argmax", "threshold", "never"] = "argmax"
    """Who decides at inference: the model's likeliest token, a threshold, or nobody."""
    switch_tau: Share = 0.7
    """threshold: a latent where no token has this probability."""
    switch_most: Count | None = 4
    """Latents that may follow one another at inference; null sets no limit."""

    def resolved_stages(self) -> tuple[LtStage, ...]:
        """The stages, from the preset where none are given."""
        return self.stages or (PAPER if self.preset == "paper" else RELEASED)

    def resolved_text(self) -> str:
        """The wording, from the preset where none is given."""
        return self.text or self.preset


class FillConfig(Section):
    """What a latent position reads, see latentpt.finetuning.fills; LT-Tuning's stages name the kind themselves."""

    kind: Kind | None = None
    """null: hidden for coconut, pause for the pause modes."""
    layer: int | None = None
    """Layer of the state, as transformers counts hidden states; null: -1, for LT-Tuning's paper preset -2."""
    alpha: Share = 0.6
    """fusion: share of the state."""
    top_p: Share | None = None
    """soft and fusion; null: 0.8, for LT-Tuning's released preset 0.9."""
    temperature: Positive = 1.0
    """soft and fusion."""
    inclusive: bool | None = None
    """Whether the id that crosses top_p is kept; null: true, for LT-Tuning's released preset false."""
    adapter: Whole = 0
    """Width inside the adapter of the state; 0: no adapter."""


class LoraConfig(Section):
    """Low-rank adaptation of the projection layers (needs the package peft); merged wherever weights are written."""

    rank: Whole = 0
    """Rank; 0 trains all weights."""
    alpha: Positive = 32.0
    """Scale: the update is multiplied by alpha / rank."""


class TuningConfig(Section):
    """How much at once, in which precision."""

    batch: Count = 128
    """Questions per optimizer step, over all ranks and micro-batches."""
    micro_batch: Count = 8
    """Questions that one rank runs forward and backward at once."""
    epochs: Count = 25
    """Epochs of cot and no_cot; the other modes have their own."""
    stop_at: Long | None = None
    """Stop (and save) after this optimizer step; null: train to the end."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward."""
    engine: Literal["segments", "jacobi"] = "segments"
    """segments: exact, most latents in a row + 1 passes; jacobi: a fixed number of full passes."""
    refills: Whole = 3
    """jacobi: how often latents are refilled after the first pass."""
    attention: str = "sdpa"
    """Attention backend."""
    checkpoint_activations: Recompute = "none"
    """What is made again in the backward pass, as in a pretraining: none, selective, block or pass."""
    max_skipped: Count = 10
    """Abort after this many consecutive steps with a non-finite gradient."""
    silence: Positive = 120.0
    """Seconds without a sign of life of a rank after which the training ends and names it."""
    patience: Positive = 1800.0
    """Seconds without progress on any rank after which the training counts as hung and ends."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adaptation."""

    @model_validator(mode="before")
    @classmethod
    def _read_booleans(cls, values: Any) -> Any:
        return recompute_by_name(values)


class AnswerConfig(Section):
    """How accuracy is measured while training."""

    every: Count = 1
    """Epochs between measurements on data.validation; the last epoch of a stage is always measured."""
    rows: Count | None = None
    """Validation questions, from the start of the file; null means all."""
    max_new_tokens: Count = 64
    """Tokens that an answer may have."""
    batch: Count = 64
    """Questions answered at once by one rank."""
    extraction: Extraction | None = None
    """after_hash or last_number; null: after_hash, for lt_tuning last_number."""
    best: Literal["final_stage", "any"] = "final_stage"
    """Measurements that may decide which checkpoint is best."""


class FinetuneConfig(FolderConfig):
    """Everything that decides a fine-tuning."""

    seed: int = 0
    """Decides fresh weights, order of questions, drawn stages and inserted latents."""
    mode: Mode
    """cot: chain of thought; no_cot: answer alone; coconut; no_thoughts: its curriculum without latents; pause: with a
    learned vector for latents, in one pass; pause_multipass: the same in as many passes as coconut; lt_tuning."""
    start: StartConfig = StartConfig()
    """First weights."""
    data: DataConfig = DataConfig()
    """Questions."""
    markers: MarkerConfig = MarkerConfig()
    """Added tokens."""
    coconut: CoconutConfig = CoconutConfig()
    """Curriculum of coconut, no_thoughts and the pause modes."""
    lt: LtConfig = LtConfig()
    """LT-Tuning."""
    fill: FillConfig = FillConfig()
    """What latents read."""
    training: TuningConfig = TuningConfig()
    """Batch and arithmetic."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, clip=0.0)
    """AdamW."""
    learning_rate: LearningRateConfig = LearningRateConfig(kind="constant", warmup=0.0)
    """Learning rate, anew in every stage of lt_tuning, else over the whole run."""
    zero: ZeroConfig = ZeroConfig()
    """What DeepSpeed divides among ranks."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    answers: AnswerConfig = AnswerConfig()
    """Accuracy."""
    monitor: MonitorConfig = MonitorConfig()
    """What is written down."""

    @model_validator(mode="after")
    def _check(self) -> FinetuneConfig:
        training = self.training
        if not (self.start.run or self.start.model or self.start.fresh):
            raise ValueError("start needs weights: give start.run, start.model or start.fresh")
        if not self.data.train or not self.data.validation:
            missing = "train" if not self.data.train else "validation"
            raise ValueError(f"data.{missing} is required and was not given (a file of questions)")
        if training.lora.rank and self.optimizer.weight_decay:
            raise ValueError(
                "training.lora needs optimizer.weight_decay = 0: decay would move the frozen rows of the embedding, "
                f"got {self.optimizer.weight_decay}"
            )
        check_recomputation(training.checkpoint_activations, self.zero.stage)
        return self

    @property
    def extraction(self) -> Extraction:
        """How answers are read."""
        return self.answers.extraction or ("last_number" if self.mode == "lt_tuning" else "after_hash")


def load_finetune_config(path: str | Path, overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Load a configuration; raises ConfigError, see `latentpt.config.load_config`."""
    return load_folder_config(FinetuneConfig, path, overrides)
