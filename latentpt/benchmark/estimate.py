"""What a run will take, before anything is trained: memory, the largest micro-batch, FLOPs and time.

Activations are not modelled but counted: the training step runs once on fake tensors, which have shapes and no data,
and every byte alive is added up. Two micro-batch sizes give what each sample costs. (A deep model takes a minute.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latentpt.benchmark.memory import PeakMemory
from latentpt.run import RunConfig
from latentpt.thoughts.cost import Cost, inference_flops_per_token, training_cost
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.registry import make_method

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes are per device, FLOPs per text token."""

    parameters: int
    """Parameters of the model."""
    state_bytes: float
    """Weights, gradients and optimizer states on one device, divided as the ZeRO stage says."""
    sample_bytes: float
    """Peak activation memory that one more sample in the micro-batch costs, gradients of weights left out."""
    cost: Cost
    """Training FLOPs and trunk passes per token."""
    inference_flops: float
    """FLOPs per token of exact decoding at the training length."""
    kv_bytes: int
    """Cache per decoded token."""
    tokens: int
    """Tokens of the whole training."""

    def largest_micro_batch(self, memory: float) -> int:
        """Samples that fit beside the state into `memory` bytes of one device."""
        return max(0, int((memory - self.state_bytes) // self.sample_bytes))

    def seconds(self, flops_per_second: float) -> float:
        """Time of the training at a sustained rate over all devices."""
        return self.tokens * self.cost.total / flops_per_second


def estimate(config: RunConfig, devices: int = 1) -> Estimate:
    """Estimate a run on `devices` devices."""
    length = config.data.sequence_length
    with FakeTensorMode():
        model = LanguageModel(config.model, config.thoughts)
        count = sum(parameter.numel() for parameter in model.parameters())
    return Estimate(
        parameters=count,
        state_bytes=_state_bytes(config, count, devices),
        sample_bytes=float(_activation_bytes(config, 2) - _activation_bytes(config, 1)),
        cost=training_cost(config.model, config.thoughts, length, config.steps),
        inference_flops=inference_flops_per_token(config.model, config.thoughts, length),
        kv_bytes=kv_bytes_per_token(config, 2 if config.training.precision == "bf16" else 4),
        tokens=config.steps * config.training.global_batch(length) * length,
    )


def kv_bytes_per_token(config: RunConfig, bytes_per_value: int) -> int:
    """Keys and values of all slots of one token."""
    model = config.model
    slots = make_method(config.thoughts, model).slots
    return 2 * model.num_layers * model.kv_heads * model.head_width * slots * bytes_per_value


def _activation_bytes(config: RunConfig, samples: int) -> int:
    """Peak of one forward and backward of a micro-batch, beyond weights and their gradients."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if config.training.precision == "bf16" else torch.float32)
    try:
        return _peak_of_step(config, samples)
    finally:
        torch.set_default_dtype(default)


def _peak_of_step(config: RunConfig, samples: int) -> int:
    with FakeTensorMode():
        model = LanguageModel(
            config.model, config.thoughts, checkpoint_activations=config.training.checkpoint_activations
        )
        tokens = torch.zeros(samples, config.data.sequence_length + 1, dtype=torch.long)
        with PeakMemory(outside=[*model.parameters(), tokens]) as memory:
            loss = model(tokens[:, :-1], targets=tokens[:, 1:], return_logits=False).loss
            assert loss is not None
            loss.backward()
    return memory.peak


def _state_bytes(config: RunConfig, parameters: int, devices: int) -> float:
    """Per parameter: weight and gradient in the precision of training, fp32 master (bf16 only) and two Adam moments."""
    stage, low = config.zero.stage, config.training.precision == "bf16" and config.zero.stage > 0
    weight = gradient = 2 if low else 4
    optimizer = 8 + (4 + 4 if low else 0)  # master weights and the fp32 sum of gradients over micro-batches
    shared = {0: 0, 1: optimizer, 2: optimizer + gradient, 3: optimizer + gradient + weight}[stage]
    whole = weight + gradient + optimizer - shared
    return parameters * (whole + shared / devices)


def report(config: RunConfig, devices: int, memory_gib: float, tflops: float) -> str:
    """The estimate in lines, for devices of `memory_gib` GiB that sustain `tflops` TFLOP/s each."""
    found = estimate(config, devices)
    length = config.data.sequence_length
    rate = tflops * 1e12 * devices
    seconds = found.seconds(rate)
    micro = found.largest_micro_batch(memory_gib * GIB)
    lines = [
        ("parameters", f"{found.parameters:,}"),
        ("training FLOPs per token", f"{found.cost.total:.4g} ({found.cost.slots:.2f} trunk passes)"),
        ("inference FLOPs per token", f"{found.inference_flops:.4g} at {length} tokens"),
        ("training FLOPs", f"{found.tokens * found.cost.total:.4g} for {found.tokens:,} tokens"),
        ("state per device", f"{found.state_bytes / GIB:.2f} GiB (ZeRO stage {config.zero.stage}, {devices} devices)"),
        ("activations per sample", f"{found.sample_bytes / GIB:.3f} GiB of {length} tokens"),
        ("largest micro-batch", f"{micro} samples in {memory_gib:g} GiB" if micro else f"none fits {memory_gib:g} GiB"),
        ("cache per decoded token", f"{found.kv_bytes:,} bytes"),
        ("time", f"{_hours(seconds)} at {tflops:g} TFLOP/s per device, {rate / found.cost.total:,.0f} tokens/s"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
