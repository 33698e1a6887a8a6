"""What one device holds of a training's state, part by part, by ZeRO stage, precision, offload and number of ranks.

The parts are those that DeepSpeed 0.19 makes; tests/benchmark/test_state.py counts them to the byte in real trainings of one
process. What several ranks divide follows from there.

    stage 0           all of it whole: weights, gradients and both moments in fp32
    stage 1, bf16     bf16 weights and gradients whole, and beside them the gradients' sum over micro-batches in fp32, whole too
    stage 1, fp32     fp32 weights and gradients whole
    stage 1, fp16     fp16 weights whole, gradients in fp32 whole
    stage 2           weights whole; gradients go into a bucket as they are made, and from there into this rank's fp32 part
    stage 3           weights divided as well; gathered ones stay until they are too many
    stages 1 to 3     fp32 masters and moments, divided
"""

from __future__ import annotations

from typing import NamedTuple

from latentpt.run import RunConfig

GATHERED = 1_000_000_000
"""Parameters that DeepSpeed's stage 3 lets stay gathered on every rank, since a later layer or pass reads them."""
REDUCED = 500_000_000
"""Elements that DeepSpeed reduces at once where there are no buckets of ours."""


class State(NamedTuple):
    """Bytes on one device, or in the host memory of one rank."""

    weights: float
    """What the forward reads, gathered parameters included."""
    gradients: float
    """Of the weights, and their sum over micro-batches."""
    optimizer: float
    """fp32 masters and moments; at stage 0, whose weights are fp32, moments alone."""
    reduction: float
    """Beside activations, in the backward pass: buckets, and this rank's part of a micro-batch's gradients."""
    step: float
    """Beside what is held, when activations are gone: gradients laid out for reduction or update, tensors of the update."""
    host: float
    """In host memory: what is offloaded."""

    @property
    def held(self) -> float:
        """On the device from micro-batch to micro-batch."""
        return self.weights + self.gradients + self.optimizer


def state_of(config: RunConfig, parameters: int, ranks: int, fused: bool = True) -> State:
    """The state of a training on `ranks` devices; `fused`: AdamW in one kernel, as on a GPU, makes no tensors of its own."""
    zero, precision = config.zero, config.training.precision
    whole, part = float(parameters), parameters / ranks
    update = 0.0 if fused else 8.0  # a root and a quotient as large as what is updated
    if zero.stage == 0:
        reduced = 4 * min(whole, REDUCED) if ranks > 1 else 0.0
        return State(4 * whole, 4 * whole, 8 * whole, 0.0, reduced, 0.0)
    low = precision != "fp32"
    weight = 2 if low else 4
    offloaded = zero.offload_optimizer is not None
    bucket = zero.bucket * (2 if zero.overlap_comm else 1)
    weights, optimizer = weight * whole, 12 * part
    if zero.stage == 1 and precision == "bf16" and not offloaded:
        gradients, reduction = (2 + 4) * whole, 0.0
        step = max(4 * whole if parameters < REDUCED else 0.0, update * part)
    elif zero.stage == 1:
        gradients, reduction = 4 * whole, 4 * bucket + 4 * part
        step = max(0.0, (8 + update) * part - 4 * whole)
    elif zero.stage == 2:
        gradients, reduction = 4 * part, weight * (bucket + part)
        step = ((0 if low else 4) + update) * part
    else:
        gathered = min(whole, GATHERED) if ranks > 1 else 0.0
        weights = weight * (part + gathered)
        gradients, reduction = 4 * part, weight * bucket
        step = (4 + update) * part - weight * gathered
    host = 0.0
    if offloaded:
        host, optimizer, step = optimizer + gradients * (zero.stage == 3) + 4 * part, 0.0, 0.0
    if zero.offload_parameters is not None:
        host, weights = host + weight * part, weights - weight * part
    return State(weights, gradients, optimizer, reduction, max(0.0, step), host)
