"""Configuration of one training: length and batch, optimizer, learning rate, ZeRO, checkpoints, validation, monitor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

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
    nearest,
    nearest_divisor,
)
from latentpt.modeling.config import Recompute, recompute_by_name


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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward, fp16 with a loss scale that follows overflows; master weights, gradients summed over micro-batches and Adam's moments are fp32."""
    attention: str = "sdpa"
    """Attention backend, a name of `latentpt.modeling.attention`."""
    checkpoint_activations: Recompute = "none"
    """What is made again in the backward pass instead of being kept: none; selective, all but matrix products and causal attention;
    block, all of a block but its input; pass, all of a pass through the layers but its input. true means block."""
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

    @model_validator(mode="before")
    @classmethod
    def _read_booleans(cls, values: Any) -> Any:
        return recompute_by_name(values)

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
    """Matrices (linear weights, embeddings, head) decay; vectors (biases, norm weights) do not."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw for all parameters, or muon for the matrices of the blocks beside AdamW for embeddings, head, vectors and what a
    thought method adds."""
    lr: Positive = 3e-4
    """Peak learning rate."""
    matrix_lr: Positive | None = None
    """muon: peak learning rate of the matrices that it updates; null means lr, which suits adjust = match_rms_adamw."""
    momentum: Decay = 0.95
    """muon: decay of the running mean of the gradient."""
    adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """muon: factor on the learning rate of a matrix [m, n], 0.2 sqrt(max(m, n)), with which updates have the size of AdamW's,
    or sqrt(max(1, m / n)), the first publication's, which wants a matrix_lr of its own (0.02, say)."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of Adam's running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay of the matrices."""
    clip: NotNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        _require(
            self.matrix_lr is None or self.kind == "muon",
            "optimizer.matrix_lr belongs to optimizer.kind = muon; AdamW takes optimizer.lr",
        )
        return self


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


class AverageConfig(Section):
    """Averaging of late weights: what is measured on held-out data, evaluated, exported and started from is the average; the
    training itself goes on from its own weights."""

    begin: NotNegative = 0.8
    """When it begins: below 1 a fraction of the training, otherwise a number of steps."""
    horizon: Positive | None = None
    """Steps over which it forgets: an exponential moving average once it has seen so many; null: all since `begin` count alike."""

    def share(self, step: int, steps: int) -> float:
        """What the weights after optimizer step `step` (the first is 0) of `steps` count in the average after it; 0 before it begins.

        1 / n for the n-th weights, never less than 1 / horizon: the mean of all, then an exponential moving average.
        """
        begin = round(self.begin * steps) if self.begin < 1 else round(self.begin)
        if step < begin:
            return 0.0
        return max(1 / (step + 1 - begin), 0.0 if self.horizon is None else min(1.0, 1 / self.horizon))


DECIDED = {
    "train_batch_size": "training.batch_samples",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.batch_samples with training.micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer.kind",
    "scheduler": "learning_rate.kind",
    "bf16.enabled": "training.precision",
    "bf16.check_grad_overflow": "training.max_skipped",
    "fp16.enabled": "training.precision",
    "fp16.auto_cast": "training.precision",
    "data_types": "training.precision",
    "torch_autocast": "training.precision",
    "activation_checkpointing": "training.checkpoint_activations",
    "compile": "training.compile",
    "checkpoint": "checkpoint.every",
    "tensorboard": "monitor.tensorboard",
    "zero_allow_untested_optimizer": "optimizer.kind",
    "zero_force_ds_cpu_optimizer": "optimizer.kind",
    "zero_optimization.stage": "zero.stage",
    "zero_optimization.reduce_bucket_size": "zero.bucket",
    "zero_optimization.overlap_comm": "zero.overlap_comm",
    "zero_optimization.offload_optimizer.device": "zero.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "zero.offload_optimizer",
    "zero_optimization.offload_param.device": "zero.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "zero.offload_parameters",
    "zero_optimization.round_robin_gradients": "the order of parameters in a checkpoint",
    "zero_optimization.zenflow": "optimizer.kind",
    "zero_optimization.cpu_offload": "zero.offload_optimizer",
    "zero_optimization.cpu_offload_param": "zero.offload_parameters",
}
"""Keys of DeepSpeed's configuration, and what decides them: an option of ours, mostly."""

DEEPSPEED_KEYS = {
    *(key.split(".")[0] for key in DECIDED),
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "disable_allgather"),
    *(
        "steps_per_print",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
        "comms_logger",
        "flops_profiler",
    ),
    *("csv_monitor", "wandb", "comet", "timers", "aio", "sparse_gradients", "disable_python_gc"),
}
"""DeepSpeed takes no notice of a first key that it does not know; we refuse it."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values that are no sections."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


class ZeroConfig(Section):
    """Which parts of the training state DeepSpeed divides among the ranks."""

    stage: Literal[0, 1, 2, 3] = 1
    """0: nothing; 1: optimizer states; 2: and gradients; 3: and parameters."""
    bucket: Count = 500_000_000
    """Elements that one communication bucket holds at most."""
    overlap_comm: bool | None = None
    """Whether gradients are reduced while the backward pass goes on; null means as DeepSpeed has it: at stage 3 alone."""
    offload_optimizer: str | None = None
    """Where masters and moments lie and are updated: cpu, in host memory; a folder, the masters in host memory and the moments in
    files of it; null, on the device. Stages 1 to 3."""
    offload_parameters: Literal["cpu"] | None = None
    """Where the parameters' parts lie until they are gathered: cpu, in host memory; null, on the device. Stage 3."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed's own keys, as in its documentation, handed on to it; those that an option of ours decides are refused."""

    @model_validator(mode="after")
    def _check(self) -> ZeroConfig:
        _require(
            self.offload_optimizer in (None, "cpu") or "/" in str(self.offload_optimizer),
            f"zero.offload_optimizer = {self.offload_optimizer} is neither cpu nor a folder; "
            f"as a folder write ./{self.offload_optimizer}",
        )
        _require(
            self.offload_optimizer is None or self.stage > 0,
            f"zero.offload_optimizer = {self.offload_optimizer} needs zero.stage 1, 2 or 3; the nearest is 1",
        )
        _require(
            self.offload_parameters is None or self.stage == 3,
            f"zero.offload_parameters = {self.offload_parameters} needs zero.stage = 3, which divides parameters",
        )
        for key in leaves(self.deepspeed):
            for name, ours in DECIDED.items():
                _require(
                    not f"{key}.".startswith(f"{name}."),
                    f"zero.deepspeed.{key} cannot be given: {ours} decides it",
                )
            top = key.split(".")[0]
            _require(
                top in DEEPSPEED_KEYS,
                f"zero.deepspeed.{top} is no key of DeepSpeed that a training here reads; "
                f"the nearest is {nearest(top, DEEPSPEED_KEYS)}",
            )
        return self


def check_recomputation(checkpoint_activations: str, stage: int) -> None:
    """Refuse `selective` where parameters are fetched within a block: that is no operation whose result could be kept."""
    _require(
        checkpoint_activations != "selective" or stage < 3,
        "training.checkpoint_activations = selective does not work with zero.stage = 3; the nearest that does is block",
    )


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
