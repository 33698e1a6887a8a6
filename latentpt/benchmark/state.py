"""What one device holds of a training's state, part by part, by ZeRO stage, precision, offload and number of ranks.

The parts are those that DeepSpeed 0.19 makes; tests/benchmark/test_state.py counts them to the byte in real trainings of one
process and of two ranks.

    stage 0           all of it whole: weights, gradients and both moments in fp32
    stage 1, bf16     bf16 weights and gradients whole, and beside them the gradients' sum over micro-batches in fp32, whole too
    stage 1, fp32     fp32 weights and gradients whole
    stage 1, fp16     fp16 weights whole, gradients in fp32 whole
    stage 2           weights whole; gradients go into a bucket as they are made, and from there into this rank's fp32 part
    stage 3           weights divided as well; gathered ones stay until they are too many
    stages 1 to 3     fp32 masters and moments, divided

Muon keeps one moment of its matrices instead of two; an average of late weights is as large as the masters.
"""

from __future__ import annotations

from typing import NamedTuple

from latentpt.run import RunConfig

GATHERED = 1_000_000_000
"""Parameters that DeepSpeed's stage 3 lets stay gathered on every rank, since a later layer or pass reads them."""
FETCHED = 50_000_000
"""Parameters that it fetches ahead at once; they arrive in one piece and are copied out of it."""
REDUCED = 500_000_000
"""Elements that DeepSpeed lays out side by side to reduce them where there are no buckets of ours."""


class State(NamedTuple):
    """Bytes on one device, or in the host memory of one rank."""

    weights: float
    """What the forward reads; at stage 3 this rank's part of it."""
    gradients: float
    """Of the weights, and their sum over micro-batches."""
    optimizer: float
    """fp32 masters, moments and average; at stage 0, whose weights are fp32, without masters."""
    reduction: float
    """Beside activations, in the backward pass: buckets, this rank's part of a micro-batch's gradients, gathered parameters."""
    step: float
    """Beside what is held, when activations are gone: gradients laid out for reduction or update, tensors of the update."""
    host: float
    """In host memory: what is offloaded."""

    @property
    def held(self) -> float:
        """On the device from micro-batch to micro-batch."""
        return self.weights + self.gradients + self.optimizer


def state_of(config: RunConfig, parameters: int, ranks: int, fused: bool = True, by_muon: int = 0) -> State:
    """The state of a training on `ranks` devices; `fused`: AdamW in one kernel, as on a GPU, makes no tensors of its own.

    `by_muon` of the parameters are updated by Muon.
    """
    zero, precision = config.zero, config.training.precision
    whole, part, share = float(parameters), parameters / ranks, by_muon / parameters
    kept = 8 - 4 * share + 4 * (config.average is not None)  # moments and average
    # AdamW: a root and a quotient as large as what is updated; Muon: directions. One is over when the other begins.
    update = max(0.0 if fused else 8 * (1 - share), 4 * share)
    if zero.stage == 0:
        step = max(4 * min(whole, REDUCED), 4 * by_muon)
        return State(4 * whole, 4 * whole, kept * whole, 0.0, step, 0.0)
    low = precision != "fp32"
    weight = 2 if low else 4
    offloaded = zero.offload_optimizer is not None
    bucket = zero.bucket * (2 if zero.overlap_comm else 1)
    weights, optimizer = weight * whole, (4 + kept) * part
    if zero.stage == 1 and precision == "bf16" and not offloaded:
        gradients, reduction = (2 + 4) * whole, 0.0
        sent = 0 if zero.deepspeed.get("communication_data_type") == "fp32" else 2  # cast to bf16
        laid_out = 4 if parameters < REDUCED else 0  # they lie side by side, group by group
        step = max((sent + laid_out) * whole, update * part)
    elif zero.stage == 1:
        gradients, reduction = 4 * whole, 4 * bucket + 4 * part
        step = max(0.0, (8 + update) * part - 4 * whole)
    elif zero.stage == 2:
        gradients, reduction = 4 * part, weight * (bucket + part)
        step = ((0 if low else 4) + update) * part
    else:
        weights = weight * part
        gathered = min(whole, GATHERED) + min(whole, FETCHED) if ranks > 1 else 0.0
        gradients, reduction = 4 * part, weight * (bucket + gathered)
        step = (4 + update) * part
    host = 0.0
    if offloaded:
        host = optimizer + 4 * part + (4 if zero.stage == 3 else weight) * part
        optimizer, step = 0.0, 0.0
        gradients *= zero.stage < 3
    if zero.offload_parameters is not None:
        host, weights = host + weight * part, weights - weight * part
    return State(weights, gradients, optimizer, reduction, step, host)
