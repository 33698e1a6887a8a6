"""What real trainings of a million parameters hold, tensor by tensor, counted to the byte, beside the estimate.

    python -m tests.benchmark.states            one process
    python -m tests.benchmark.states 2          one of two ranks

prints Markdown, in bytes per parameter: between two micro-batches, and at the most of the backward pass and the optimizer
step after it. Host and device are one here.
"""

import argparse
import gc
import itertools
import json
import os
from typing import NamedTuple

import torch

from latentpt.benchmark.estimate import estimate
from latentpt.benchmark.memory import PeakMemory
from latentpt.run import RunConfig
from latentpt.training.engine import Engine, start_processes
from latentpt.training.trainer import build_model, training_loss
from tests.training.small import finish, start_ranks

BUCKET = 10_000
STAGES = {
    f"ZeRO {stage}, {precision}": {"zero": {"stage": stage}, "training": {"precision": precision}}
    for stage, precision in itertools.product(range(4), ("fp32", "bf16"))
}
MUON = {
    f"{name}, Muon and an average": {**sections, "optimizer": {"kind": "muon"}, "average": {"begin": 0}}
    for name, sections in STAGES.items()
}
OFFLOADED = {
    f"{name}, offloaded": {**sections, "zero": {**sections["zero"], "offload_optimizer": "cpu"}}
    for name, sections in STAGES.items()
    if sections["zero"]["stage"]
}
LONG = {
    f"ZeRO 1, bf16, 256 tokens, recomputed: {what}": {
        "zero": {"stage": 1},
        "training": {"precision": "bf16", "checkpoint_activations": what},
        "data": {"sequence_length": 256},
    }
    for what in ("none", "selective", "block")
}
EXCHANGED = {
    "ZeRO 1, bf16, exchanged in fp32": {
        "zero": {"stage": 1, "deepspeed": {"communication_data_type": "fp32"}},
        "training": {"precision": "bf16"},
    }
}
ALL = {**STAGES, **MUON, **OFFLOADED, **LONG, **EXCHANGED}


class Bytes(NamedTuple):
    """Between two micro-batches, and at most."""

    held: float
    peak: float


class Row(NamedTuple):
    """What one rank holds; `largest` is its largest parameter."""

    measured: Bytes
    estimated: Bytes
    parameters: int
    largest: int


def config_of(**sections):
    """A million parameters and, unless asked for more, eight tokens: what is counted is the state."""
    values = {
        "model": {"family": "llama", "vocab_size": 256, "hidden_size": 128, "num_layers": 4, "num_heads": 4, "max_positions": 256},
        "data": {"train": "x", "sequence_length": 8},
        "training": {"steps": 2, "batch_samples": 4, "micro_batch": 1},
        # However small, no parameter stays gathered: so it is in a large model.
        "zero": {"bucket": BUCKET, "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    }  # fmt: skip
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    return RunConfig(**values)


def row(config) -> Row:
    """The second step of a training, counted and estimated; collective."""
    _, ranks, device = start_processes()
    share = 0.5 if config.average else 0.0
    with PeakMemory() as memory:
        model = build_model(config)
        engine = Engine(
            model, training_loss, config.optimizer, config.zero, config.training.precision, 1, 2, device
        )
        tokens = torch.zeros(1, config.data.sequence_length + 1, dtype=torch.long)
        batch = (tokens, model.training_schedule(0, 0), None, None, None)
        for _ in range(2):
            engine.accumulate(*batch)
        engine.step(1e-3, share)
        engine.accumulate(*batch)
        gc.collect()
        held = memory.peak = memory.now
        engine.accumulate(*batch)
        engine.step(1e-3, share)
    sizes = [torch.Size(shape).numel() for shape in engine.shapes.values()]
    found = estimate(config, ranks, fused=False)
    host = found.state.host
    estimated = Bytes(found.state.held + host, found.device_bytes(1) + host)
    return Row(Bytes(held, memory.peak), estimated, sum(sizes), max(sizes))


def rows(ranks: int, names) -> dict[str, Row]:
    """What the first of several processes holds, for these names of ALL."""
    command = ("-m", "tests.benchmark.states", "--names", *names)
    told = finish(start_ranks(ranks, *command), seconds=1800)[0].splitlines()
    found = json.loads(next(line for line in told if line.startswith('{"')))
    return {name: Row(Bytes(*a), Bytes(*b), *sizes) for name, (a, b, *sizes) in found.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ranks", type=int, nargs="?", default=1)
    parser.add_argument("--names", nargs="+", default=list(ALL), help=argparse.SUPPRESS)  # of one of them
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        print(json.dumps({name: row(config_of(**ALL[name])) for name in arguments.names}))
        return
    print("| | held: measured | estimated | at most: measured | estimated |\n|---|---|---|---|---|")
    for name, (measured, estimated, n, _) in rows(arguments.ranks, arguments.names).items():
        cells = (f"{size / n:.1f}" for pair in zip(measured, estimated, strict=True) for size in pair)
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
