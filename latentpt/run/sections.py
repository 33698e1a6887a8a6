"""Configuration of one training: length and batch, optimizer, learning rate, ZeRO, checkpoints, validation, monitor."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from latentpt.config import (
    ConfigError,
    Count,
    Decay,
    Long,
    NotNegative,
    Positive,
    Section,
    Share,
    Whole,
    nearest_divisor,
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class TrainingConfig(Section):
    """How long to train, on how much at once, in which precision."""

    steps: Long | None = None
    """Length of the training in optimizer steps; give this or training.tokens."""
    tokens: Long | None = None
    """Length of the training in tokens, rounded up to whole steps; give this or training.steps."""
    stop_at: Long | None = None
    """Stop (and save) after this step although the learning rate is that of a training that goes on to the end; null means train to the end."""
    start_from: str = ""
    """What a new training takes its first weights from: the folder of a run (its latest), a Hugging Face folder or a llama2.c
    .bin; the last two also give the section model and thoughts.embed_scale. Empty: fresh weights. What the source
    has not, the parameters of a thought method, begins afresh."""
    batch_samples: Count | None = None
    """Global batch in samples of data.sequence_length tokens, over all ranks and accumulated micro-batches."""
    batch_tokens: Count | None = None
    """Global batch in tokens, a multiple of data.sequence_length; give this or training.batch_samples."""
    micro_batch: Count = 8
    """Samples that one rank runs forward and backward at once; accumulation follows from the global batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward; master weights, gradients summed over micro-batches and Adam's moments are fp32."""
    attention: str = "sdpa"
    """Attention backend, a name of `latentpt.modeling.attention`."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool = False
    """torch.compile each block (not with zero.stage 3); the first step takes a minute or more."""
    deterministic: bool = False
    """Refuse GPU kernels whose sums depend on timing; on a CPU everything is deterministic anyway."""
    max_skipped: Count = 10
    """Abort after this many consecutive steps with a non-finite gradient."""
    rewind: Whole = 0
    """How often at most a spike of the loss lets the training go back to the checkpoint before it, and on from there past the
    data that was read since; 0: a spike is only told."""
    silence: Positive = 120.0
    """Seconds without a sign of life of a rank (suspended, machine gone) after which the training ends and names it."""
    patience: Positive = 1800.0
    """Seconds without progress on any rank after which the training counts as hung and ends, naming the rank furthest behind;
    longer than a step of its first compilation, a validation batch or a checkpoint takes."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        for first, second in (("steps", "tokens"), ("batch_samples", "batch_tokens")):
            given = [name for name in (first, second) if getattr(self, name) is not None]
            _require(bool(given), f"training.{first} or training.{second} must be given")
            _require(
                len(given) == 1,
                f"training.{first} and training.{second} are both given; set one of them to null",
            )
        return self

    def global_batch(self, length: int) -> int:
        """Samples per step for samples of `length` tokens."""
        if self.batch_samples is not None:
            return self.batch_samples
        assert self.batch_tokens is not None  # one of the two is given
        if self.batch_tokens % length:
            nearest = max(1, round(self.batch_tokens / length)) * length
            raise ConfigError(
                f"training.batch_tokens = {self.batch_tokens} is no multiple of data.sequence_length = {length}; "
                f"the nearest value that is one is {nearest}"
            )
        return self.batch_tokens // length

    def total_steps(self, length: int) -> int:
        """Optimizer steps of the whole training for samples of `length` tokens."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None  # one of the two is given
        return -(-self.tokens // (self.global_batch(length) * length))

    def accumulation(self, length: int, world: int) -> int:
        """Micro-batches that each of `world` ranks accumulates per step."""
        batch, together = self.global_batch(length), self.micro_batch * world
        if batch % together:
            micro = nearest_divisor(batch // world, self.micro_batch) if batch % world == 0 else None
            way_out = f"training.micro_batch = {micro} or " if micro else ""
            raise ConfigError(
                f"a global batch of {batch} samples cannot be divided into micro-batches of {self.micro_batch} on "
                f"{world} rank{'s' if world > 1 else ''}; the nearest values that work are {way_out}"
                f"a global batch of {max(1, round(batch / together)) * together} samples"
            )
        return batch // together


class OptimizerConfig(Section):
    """AdamW. Matrices (linear weights, embeddings, head) decay; vectors (biases, norm weights) do not."""

    lr: Positive = 3e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of Adam's running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay of the matrices."""
    clip: NotNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""


class LearningRateConfig(Section):
    """Learning rate over the training: linear warm-up, then a shape that ends at the floor."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after the warm-up: cosine to the floor; wsd: constant, then linear to the floor; constant."""
    warmup: NotNegative = 0.01
    """Steps of linear warm-up: below 1 a fraction of the training, otherwise a number of steps."""
    decay: NotNegative = 0.2
    """wsd only: length of the final decay, below 1 a fraction of the training, otherwise a number of steps."""
    floor: Share = 0.1
    """Learning rate at the end, as a fraction of optimizer.lr."""

    def lengths(self, steps: int) -> tuple[int, int]:
        """Steps of the warm-up and of the final decay in a training of `steps` steps."""
        warmup, decay = (
            round(length * steps) if length < 1 else round(length) for length in (self.warmup, self.decay)
        )
        return warmup, decay if self.kind == "wsd" else 0


class ZeroConfig(Section):
    """Which parts of the training state DeepSpeed divides among the ranks."""

    stage: Literal[0, 1, 2, 3] = 1
    """0: nothing; 1: optimizer states; 2: and gradients; 3: and parameters."""
    bucket: Count = 500_000_000
    """Elements that one communication bucket holds at most."""


class CheckpointConfig(Section):
    """When the training state is saved and what is kept of it. The last step and a stop by signal are saved always."""

    every: Count = 1000
    """Steps between checkpoints."""
    keep_last: Count = 2
    """How many of the latest checkpoints are kept."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this step are kept for good; null keeps none beyond the latest."""

    @model_validator(mode="after")
    def _check(self) -> CheckpointConfig:
        if self.keep_every is not None and self.keep_every % self.every:
            nearest = max(1, round(self.keep_every / self.every)) * self.every
            raise ValueError(
                f"checkpoint.keep_every = {self.keep_every} is no multiple of checkpoint.every = {self.every}; "
                f"the nearest value that is one is {nearest}"
            )
        return self


class ValidationConfig(Section):
    """Loss on data.validation during training, by the training forward; also measured after the last step."""

    every: Count = 500
    """Steps between measurements."""
    samples: Count | None = 256
    """Samples of data.sequence_length tokens of each held-out source, evenly spread over it and the same each time; null means all."""


class MonitorConfig(Section):
    """What is written down while training."""

    every: Count = 10
    """Steps between lines of metrics.jsonl (and of the console where it is no terminal)."""
    layers_every: Count | None = 100
    """Steps between norms of the gradient and of the parameters of every layer; null: none."""
    compare_ranks_every: Count | None = 100
    """Steps between comparisons of the ranks' parameters, by checksums (zero.stage 0 to 2; also at every checkpoint); null: none."""
    texts_every: Count | None = None
    """Steps between texts that the model writes after beginnings of held-out samples (needs the shards' tokenizer); null: none."""
    skipped: Whole = 10
    """Of how many steps with a non-finite gradient the samples and norms are kept, in the folder skipped of the run."""
    profile: tuple[Count, Count] | None = None
    """First and last step of a trace (torch.profiler), which goes to the folder profile of the run; null: none."""
    tensorboard: bool = True
    """Also write TensorBoard events to the run folder."""
    wandb: str | None = None
    """Project of Weights & Biases that measurements also go to; null: none."""
    trackio: str | None = None
    """Project of trackio that measurements also go to; null: none."""
    report: bool = True
    """When a pretraining ends or stops write the page about the run, report.html; `launch/report.py` makes it at any time."""
    peak_tflops: Positive | None = None
    """Peak arithmetic of one device in 1e12 FLOP/s, for MFU; null means look the device up (unknown ones give no MFU)."""

    @model_validator(mode="after")
    def _check(self) -> MonitorConfig:
        if self.profile is not None and self.profile[0] > self.profile[1]:
            first, last = self.profile
            raise ValueError(
                f"monitor.profile = [{first}, {last}] ends before it begins; the nearest that does not is [{first}, {first}]"
            )
        for name in ("wandb", "trackio"):
            if getattr(self, name) == "":
                raise ValueError(f"monitor.{name} is empty; name a project, or set it to null")
        return self
