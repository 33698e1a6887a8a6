"""One rank that trains two steps and says how much memory it took: python measured.py SPECIFICATION [SPECIFICATION ..]

A specification is a JSON object of sections over those of `config_of`. For each a line of JSON: resident memory held between two
micro-batches and its peak over two steps, both in bytes above what the process had before the model was made.
"""

import gc
import json
import os
import sys
from pathlib import Path

import latentpt  # noqa: F401 before torch

# isort: split
import torch
import torch.distributed as dist

from latentpt.benchmark.trial import peak, reset_peak
from latentpt.run import RunConfig
from latentpt.training.engine import Engine, start_processes
from latentpt.training.trainer import build_model, training_loss

SMALL_BUCKET = 100_000


def config_of(**sections):
    """15 million parameters, few tokens."""
    values = {
        "model": {"family": "llama", "vocab_size": 1024, "hidden_size": 512, "num_layers": 4, "num_heads": 4, "max_positions": 512},
        "data": {"train": "x", "sequence_length": 16},
        "training": {"steps": 2, "batch_samples": 64, "micro_batch": 1},
        "zero": {"bucket": SMALL_BUCKET},
    }  # fmt: skip
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    return RunConfig(**values)


def resident():
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(config, device):
    """(held, peak) of two steps of two micro-batches."""
    gc.collect()
    before, settings = resident(), config.training
    model = build_model(config)
    engine = Engine(
        model,
        training_loss,
        config.optimizer,
        config.zero,
        settings.precision,
        settings.micro_batch,
        2,
        device,
    )
    tokens = torch.zeros(settings.micro_batch, config.data.sequence_length + 1, dtype=torch.long)
    reset_peak(device)
    held = 0
    for step in range(2):
        schedule = model.training_schedule(0, step)
        engine.accumulate(tokens, schedule, None, None, None)
        gc.collect()
        held = resident() - before
        engine.accumulate(tokens, schedule, None, None, None)
        engine.step(1e-3)
    return held, peak(device) - before


if __name__ == "__main__":
    _, _, device = start_processes()
    torch.set_num_threads(1)
    for specification in sys.argv[1:]:
        held, most = measure(config_of(**json.loads(specification)), device)
        dist.barrier()
        print(json.dumps({"held": held, "peak": most}), flush=True)
