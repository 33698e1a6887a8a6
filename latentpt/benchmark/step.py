"""Time and memory of the training step: ours by solver, and the published code beside it where a user has it.

No figure without a gate: before anything is timed, both sides compute loss and every gradient of the same batch from
the same weights, and must agree. Then each side runs in turn (A B B A ..), so that a machine whose speed drifts slows
both; what counts is the ratio within a pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentpt.benchmark.memory import PeakMemory
from latentpt.benchmark.reference import load_reference, reference_loss
from latentpt.config import ConfigError
from latentpt.hub import to_hf
from latentpt.modeling.config import ModelConfig
from latentpt.seeding import stream
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.cost import training_cost
from latentpt.thoughts.model import LanguageModel

Loss = Callable[[Tensor], Tensor]


@dataclass
class Contender:
    """One way to compute the training loss, and what was measured of it."""

    name: str
    module: nn.Module
    loss: Loss
    flops_per_token: float
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def step(self, ids: Tensor) -> Tensor:
        """Forward and backward of one batch [B, L]; returns the loss."""
        self.module.zero_grad(set_to_none=True)
        loss = self.loss(ids)
        loss.backward()
        return loss.detach()


def ours(
    name: str, model: ModelConfig, thoughts: ThoughtsConfig, device: str, dtype: torch.dtype
) -> Contender:
    """Our training step, with weights from seed 0."""
    module = LanguageModel(model, thoughts)
    module.initialize(0)
    module = module.to(device, dtype)

    def loss(ids: Tensor) -> Tensor:
        value = module(ids, labels=ids, return_logits=False).loss
        assert value is not None
        return value

    return Contender(name, module, loss, 0.0)


def published(checkout: Path, contender: Contender, refinements: int) -> Contender:
    """The published code's step with the weights of one of ours."""
    assert isinstance(contender.module, LanguageModel)
    device = next(contender.module.parameters()).device
    module = load_reference(checkout, contender.module, refinements).to(device)
    return Contender("published", module, lambda ids: reference_loss(module, ids), 0.0)


def gate(mine: Contender, theirs: Contender, ids: Tensor, tolerance: float) -> dict[str, float]:
    """Equal loss and gradients, or ConfigError naming the first that differs; returns the largest relative errors."""
    losses = [contender.step(ids).double() for contender in (mine, theirs)]
    errors = {"loss": float((losses[0] - losses[1]).abs() / losses[1].abs())}
    model = mine.module
    assert isinstance(model, LanguageModel)
    weights = [parameter.data for parameter in model.parameters()]
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    _, gradients = to_hf(model)  # a linear re-layout, so gradients travel as weights do
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.data = weight
    worst = 0.0
    for name, parameter in theirs.module.named_parameters():
        if name in gradients and parameter.grad is not None:
            error = float((gradients[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-12))
            worst = max(worst, error)
    errors["gradients"] = worst
    for what, error in errors.items():
        if error > tolerance:
            raise ConfigError(
                f"{what} of ours and of the published code differ by {error:.1e}; nothing was timed"
            )
    return errors


def measure(
    contenders: list[Contender], rows: int, length: int, vocabulary: int, repeats: int, device: str
) -> None:
    """Fill in seconds and peak memory: one step each for memory and warm-up, then `repeats` rounds, forth and back."""
    batches = [
        torch.randint(vocabulary, (rows, length), generator=stream(0, "batch", i)).to(device)
        for i in range(4)
    ]
    for contender in contenders:
        contender.step(batches[0])
        contender.module.zero_grad(set_to_none=True)
        contender.peak_bytes = _peak(contender, batches[1], device)
    for repeat in range(repeats):
        order = contenders if repeat % 2 == 0 else contenders[::-1]
        for contender in order:
            contender.seconds.append(_timed(contender, batches[repeat % 4], device))


def _timed(contender: Contender, ids: Tensor, device: str) -> float:
    """Seconds of one step: the device's time on a GPU, this process's processor time on a CPU (others may be busy)."""
    if device == "cpu":
        start = time.process_time()
        contender.step(ids)
        return time.process_time() - start
    torch.cuda.synchronize()
    begin = time.perf_counter()
    contender.step(ids)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def _peak(contender: Contender, ids: Tensor, device: str) -> int:
    """Most bytes alive during a step, beyond the weights."""
    if device == "cpu":
        with PeakMemory(outside=[*contender.module.parameters(), ids]) as memory:
            contender.step(ids)
        return memory.peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step(ids)
    return torch.cuda.max_memory_allocated() - before


def table(contenders: list[Contender], rows: int, length: int, peak_tflops: float | None) -> str:
    """One line a contender; the ratio is to the last one, the median over rounds."""
    base = contenders[-1]
    lines = [
        f"{'step':<28} {'tokens/s':>10} {'speed, ' + base.name + ' = 1':>24} {'peak MiB':>10} {'MFU':>7}"
    ]
    for contender in contenders:
        seconds = statistics.median(contender.seconds)
        ratio = statistics.median(b / a for a, b in zip(contender.seconds, base.seconds, strict=True))
        flops = contender.flops_per_token * rows * length / seconds
        mfu = (
            f"{flops / (peak_tflops * 1e12):7.1%}"
            if peak_tflops and contender.flops_per_token
            else f"{'-':>7}"
        )
        peak = contender.peak_bytes / 2**20
        lines.append(
            f"{contender.name:<28} {rows * length / seconds:>10,.0f} {ratio:>24.2f} {peak:>10,.0f} {mfu}"
        )
    return "\n".join(lines)


def solver_arms(thoughts: ThoughtsConfig) -> dict[str, ThoughtsConfig]:
    """The same thoughts by every solver worth timing, and no thoughts."""
    if thoughts.num_thoughts == 0:
        return {"vanilla": thoughts}
    k = thoughts.refinement_range[1]
    base = thoughts.model_dump() | {"refinements": k, "curriculum": ()}
    changes: dict[str, dict[str, Any]] = {
        f"jacobi K={k}": {"solver": "jacobi", "visibility": "causal", "bptt_passes": None},
        f"jacobi K={k}, 2 with gradient": {"solver": "jacobi", "visibility": "causal", "bptt_passes": 2},
        "gauss_seidel 2 sweeps": {"solver": "gauss_seidel", "visibility": "causal", "refinements": 1, "bptt_passes": None},
        "stage_causal": {"visibility": "stage_causal"},
        "vanilla": {"method": "vanilla", "num_thoughts": 0},
    }  # fmt: skip
    return {name: ThoughtsConfig(**(base | change)) for name, change in changes.items()}


def run(
    model: ModelConfig,
    thoughts: ThoughtsConfig,
    rows: int,
    length: int,
    repeats: int,
    device: str,
    dtype: torch.dtype,
    reference: Path | None,
    peak_tflops: float | None = None,
) -> str:
    """Measure the solvers side by side, with the published code if its checkout is given; returns the table."""
    contenders = []
    for name, arm in solver_arms(thoughts).items():
        contender = ours(name, model, arm, device, dtype)
        contender.flops_per_token = training_cost(model, arm, length).total
        contenders.append(contender)
    notes = []
    if reference is not None:
        refinements = thoughts.refinement_range[1]
        theirs = published(reference, contenders[0], refinements)
        theirs.flops_per_token = contenders[0].flops_per_token
        ids = torch.randint(model.vocab_size, (1, min(length, 64)), generator=stream(0, "gate")).to(device)
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        errors = gate(contenders[0], theirs, ids, tolerance)
        notes.append(
            "same weights and batch, relative errors: " + ", ".join(f"{k} {v:.1e}" for k, v in errors.items())
        )
        contenders.append(theirs)
    measure(contenders, rows, length, model.vocab_size, repeats, device)
    return "\n".join([*notes, table(contenders, rows, length, peak_tflops)])
