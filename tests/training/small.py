"""Small trainings on real text: bytes of the standard library's sources as tokens."""

import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch

from latentpt.config import build
from latentpt.data.indexed import ShardWriter
from latentpt.modeling.loss import IGNORE
from latentpt.run import RunConfig, read_metrics

ROOT = Path(__file__).resolve().parents[2]
END = 256  # id that ends a document


# A method with noise, whose parameters every second step does not use: thoughts of a run for `tiny_run`.
CARRIED = {
    "model": {"num_layers": 3},
    "thoughts": {"method": "fbt", "num_thoughts": 0, "refinements": [0, 2], "draw": [0.4, 0.3, 0.3]},
}

# One method of every kind beyond slots, of three layers: a state carried in time, sets of positions, a span of layers, a
# router whose price is weighed by how right each token was, a causal router.
FEEDBACK = {
    "lrt": {"method": "lrt", "num_thoughts": 0, "solver": "strided", "stride": 2, "refinements": 1},
    "dual_slot": {"method": "dual_slot", "num_thoughts": 1, "visibility": "stage_causal"},
    "t2mlr": {"method": "t2mlr", "num_thoughts": 0, "refinements": 3, "bptt_passes": 2},
    "alcot": {"method": "alcot", "num_thoughts": 2, "threshold": 0.8, "thought_price": 0.1},
}


# What every number of ranks and ZeRO stage must agree on: sections of `tiny_run`.
THINKING = {
    "vanilla": {"thoughts": {"method": "vanilla", "num_thoughts": 0, "refinements": 0}},
    "jacobi": {},  # with a drawn number of refinements
    "gauss_seidel": {"thoughts": {"solver": "gauss_seidel", "refinements": 1}},
    "stage_causal": {"thoughts": {"visibility": "stage_causal", "refinements": 0}},
    "loop": {"thoughts": {"method": "loop", "refinements": 0}},
    "ponder": {"thoughts": {"method": "ponder", "refinements": 0}},
    "muon": {"optimizer": {"kind": "muon"}, "average": {"begin": 1}},
}

# What must make no difference, tried with one of them each: of `thinking_run`.
OPTIONS = {
    "gauss_seidel": {"recompute": "selective", "zero": {"overlap_comm": True}},
    "stage_causal": {"recompute": "pass"},
    "loop": {
        "recompute": "block",
        "zero": {"deepspeed": {"zero_optimization": {"allgather_bucket_size": 5000}}},
    },
    "ponder": {"zero": {"offload_optimizer": "cpu"}},
}


def thinking_run(
    folder: Path, data: Path, name: str, stage: int, recompute="none", zero=(), **sections
) -> RunConfig:
    """Four steps of a kind of thinking, in folder/name; `zero` where a stage divides."""
    if stage == 3 and recompute == "selective":
        recompute = "block"  # the nearest that this stage takes
    training = {"steps": 4, "checkpoint_activations": recompute, **sections.pop("training", {})}
    zero = {"stage": stage, **dict(zero if stage else ())}
    return tiny_run(folder / name, data, **THINKING[name], **sections, training=training, zero=zero)


def write_text_shards(folder: Path, size: int) -> None:
    """folder/train and folder/validation: about `size` and size / 8 bytes of Python sources, one document a file."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for name, wanted in (("validation", size // 8), ("train", size)):
        written = 0
        with ShardWriter(folder / name, np.uint16) as shard:
            while written < wanted:
                text = np.frombuffer(sources.pop(0).read_bytes(), dtype=np.uint8)
                shard.add_document(np.append(text.astype(np.uint16), END))
                written += len(text) + 1


def tiny_run(output: Path, data: Path, /, **sections) -> RunConfig:
    """Eight steps of a model with some ten thousand parameters; `sections` override fields section by section."""
    values = {
        "output": str(output),
        "model": {"family": "llama", "vocab_size": 257, "hidden_size": 18, "num_layers": 2, "num_heads": 3},
        "thoughts": {"method": "latent", "num_thoughts": 1, "refinements": [0, 2]},
        "data": {"train": str(data / "train"), "validation": str(data / "validation"), "sequence_length": 12},
        "training": {"steps": 8, "batch_samples": 8, "micro_batch": 2},
        "optimizer": {"lr": 1e-2},
        "learning_rate": {"warmup": 0.25},
        "checkpoint": {"every": 100},
        "validation": {"every": 4, "samples": 9},
        "monitor": {"every": 1, "tensorboard": False, "report": False},
    }
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return build(RunConfig, values)


def losses(config: RunConfig, kind: str = "train") -> dict[int, float]:
    """Step -> loss of a run's metrics; a step that appears twice is an error."""
    lines = [line for line in read_metrics(config.folder.metrics) if line["kind"] == kind]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss"] for line in lines}


def sparse_targets(tokens: torch.Tensor) -> torch.Tensor:
    """Targets of samples [b, L + 1] of which every second row has none and the others more or fewer."""
    targets = tokens[:, 1:].clone()
    targets[tokens[:, :1].expand_as(targets) % 2 == 0] = IGNORE
    targets[targets > 100] = IGNORE
    return targets


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**variables) -> dict[str, str]:
    """Environment for a process of its own, without what this process knows of its rank."""
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}


def start_ranks(world: int, *command: str | Path) -> list[subprocess.Popen]:
    """Start `python command` once for every rank, as a launcher would."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen], seconds: float = 240) -> list[str]:
    """Wait for the processes; returns their outputs, and fails with them if one failed."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs
