"""What a run will take, before anything is trained: memory, the largest micro-batch, FLOPs and time.

Activations are not modelled but counted: the training step runs on fake tensors, which have shapes and no data, and every
byte alive is added up, whatever the schedule does with a block and whatever is made again. Two micro-batch sizes give what
each sample costs. (A deep model takes a minute.) The state is `latentpt.benchmark.state`. CUDA's context, NCCL's buffers and
what the allocator keeps unused come on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latentpt.benchmark.memory import PeakMemory
from latentpt.benchmark.state import State, state_of
from latentpt.run import RunConfig
from latentpt.thoughts.cost import Cost, inference_flops_per_token, training_cost
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.registry import make_method
from latentpt.training.engine.optimizers import parameter_groups

GIB = 2**30
Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class Estimate:
    """Bytes are per device, FLOPs per text token."""

    parameters: int
    """Parameters of the model."""
    state: State
    """Weights, gradients, optimizer states and buckets of one device, divided as the ZeRO stage says."""
    fixed_bytes: float
    """Of the activations what does not depend on the micro-batch."""
    sample_bytes: float
    """Peak activation memory of one sample in the micro-batch."""
    cost: Cost
    """Training FLOPs and trunk passes per token."""
    inference_flops: float
    """FLOPs per token of exact decoding at the training length."""
    kv_bytes: int
    """Cache per decoded token."""
    tokens: int
    """Tokens of the whole training."""

    def activation_bytes(self, micro_batch: int) -> float:
        """Peak of what forward and backward of a micro-batch make."""
        return self.fixed_bytes + micro_batch * self.sample_bytes

    def device_bytes(self, micro_batch: int) -> float:
        """The most that a device holds: in the backward pass, or in the optimizer step after it."""
        backward = self.activation_bytes(micro_batch) + self.state.reduction
        return self.state.held + max(backward, self.state.step)

    def largest_micro_batch(self, memory: float) -> int:
        """Samples that fit beside the state into `memory` bytes of one device."""
        free = memory - self.state.held
        if self.state.step > free:
            return 0
        return max(0, int((free - self.state.reduction - self.fixed_bytes) // self.sample_bytes))

    def seconds(self, flops_per_second: float) -> float:
        """Time of the training at a sustained rate over all devices."""
        return self.tokens * self.cost.total / flops_per_second

    @property
    def checkpoint_bytes(self) -> int:
        """A checkpoint on the disk: weights and two moments in fp32."""
        return 12 * self.parameters

    def memory_lines(self, memory: float | None, micro_batch: int) -> Lines:
        """The memory of one device part by part."""
        state = self.state
        parts = {
            "weights": state.weights,
            "gradients": state.gradients,
            "optimizer": state.optimizer,
            "buckets and reduction": state.reduction,
            f"activations of {micro_batch} samples": self.activation_bytes(micro_batch),
            "optimizer step": state.step,
            "in host memory": state.host,
        }
        lines = [
            (
                f"  {name}",
                f"{size / GIB:.2f} GiB" + (", after the backward pass" if name == "optimizer step" else ""),
            )
            for name, size in parts.items()
            if size
        ]
        total = f"{self.device_bytes(micro_batch) / GIB:.2f} GiB at most"
        if memory is not None:
            total += f" of {memory / GIB:.1f}"
            largest = self.largest_micro_batch(memory)
            fits = (
                f"{largest} samples, {self.device_bytes(largest) / GIB:.2f} GiB" if largest else "none fits"
            )
            lines.append(("largest micro-batch", fits))
        return [("memory of a device", total), *lines]


def estimate(config: RunConfig, devices: int = 1, fused: bool = True) -> Estimate:
    """Estimate a run on `devices` devices; `fused` as in `state_of`."""
    length = config.data.sequence_length
    with FakeTensorMode():
        model = LanguageModel(config.model, config.thoughts)
        count = sum(parameter.numel() for parameter in model.parameters())
        groups = parameter_groups(model, config.optimizer)
        by_muon = sum(p.numel() for group in groups if group["muon"] for p in group["params"])
    one, two = (_activation_bytes(config, samples) for samples in (1, 2))
    return Estimate(
        parameters=count,
        state=state_of(config, count, devices, fused, by_muon),
        fixed_bytes=float(one - (two - one)),
        sample_bytes=float(two - one),
        cost=training_cost(config.model, config.thoughts, length, config.steps),
        inference_flops=inference_flops_per_token(config.model, config.thoughts, length),
        kv_bytes=kv_bytes_per_token(config, 4 if config.training.precision == "fp32" else 2),
        tokens=config.steps * config.training.global_batch(length) * length,
    )


def kv_bytes_per_token(config: RunConfig, bytes_per_value: int) -> int:
    """Keys and values of all slots of one token."""
    model = config.model
    slots = make_method(config.thoughts, model).slots
    return 2 * model.num_layers * model.kv_heads * model.head_width * slots * bytes_per_value


LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _activation_bytes(config: RunConfig, samples: int) -> int:
    """Peak of one forward and backward of a micro-batch, beyond weights and their gradients once those are whole.

    A gradient to which several passes add is counted until the first of them has.
    """
    low = LOW.get(config.training.precision)
    cast = config.zero.stage == 0 and low is not None  # fp32 weights under autocast
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if cast or low is None else low)
    try:
        with torch.autocast("cpu", dtype=low) if cast else nullcontext():
            return _peak_of_step(config, samples)
    finally:
        torch.set_default_dtype(default)


def _peak_of_step(config: RunConfig, samples: int) -> int:
    with FakeTensorMode():
        model = LanguageModel(
            config.model, config.thoughts, checkpoint_activations=config.training.checkpoint_activations
        )
        for parameter in model.parameters():
            # Into the gradient that lies there or into a bucket: the state has both.
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
        tokens = torch.zeros(samples, config.data.sequence_length + 1, dtype=torch.long)
        with PeakMemory(outside=[*model.parameters(), tokens]) as memory:
            loss = model(tokens[:, :-1], targets=tokens[:, 1:], return_logits=False).loss
            assert loss is not None
            loss.backward()
    return memory.peak


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def listed(lines: Iterable[tuple[str, str]]) -> str:
    """Names and values below one another."""
    lines = list(lines)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def duration(seconds: float) -> str:
    """Days, hours, minutes or seconds, as suits."""
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 if name == "days" else 1) * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.1f} s"
