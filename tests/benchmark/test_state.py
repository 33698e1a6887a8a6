"""The estimated memory against that of real trainings: resident memory of one process and of each of two.

glibc keeps what is freed unless it was mapped by itself, so the processes have every tensor above 64 KiB mapped
(MALLOC_MMAP_THRESHOLD_). A bucket is reserved whole, but a CPU gives it no memory before it is used: theirs are small.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentpt.benchmark.estimate import estimate
from latentpt.benchmark.state import state_of
from tests.benchmark.measured import config_of
from tests.training.small import environment, free_port

PROGRAM = Path(__file__).with_name("measured.py")
SHARE, FIXED = 0.1, 24 * 2**20
"""What an estimate may be off: a tenth, and what a process takes for its own."""

LONG = {
    "model": {"hidden_size": 128, "num_layers": 4},
    "data": {"sequence_length": 256},
    "training": {"micro_batch": 8},
}
SPECIFICATIONS = [
    *({"zero": {"stage": stage}, "training": {"precision": p}} for stage in range(4) for p in ("fp32", "bf16")),
    LONG | {"thoughts": {"method": "latent", "num_thoughts": 1, "refinements": 2}},
    LONG | {"thoughts": {"method": "latent", "num_thoughts": 1, "visibility": "stage_causal"},
            "training": {"micro_batch": 8, "checkpoint_activations": True}},
]  # fmt: skip


def measured(ranks, specifications):
    """What each of so many processes took, specification by specification: the largest of them."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *(json.dumps(one) for one in specifications)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                            MASTER_PORT=port, MALLOC_MMAP_THRESHOLD_="65536"),
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    found = [
        [json.loads(line) for line in output.splitlines() if line.startswith('{"held"')] for output in outputs
    ]
    assert all(len(lines) == len(specifications) for lines in found)
    return [{key: max(line[key] for line in lines) for key in lines[0]} for lines in zip(*found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_takes_the_memory_that_was_estimated(ranks):
    wrong = []
    for specification, took in zip(SPECIFICATIONS, measured(ranks, SPECIFICATIONS), strict=True):
        config = config_of(**specification)
        found = estimate(config, ranks, fused=False)
        expected = {"held": found.state.held, "peak": found.device_bytes(config.training.micro_batch)}
        said = ", ".join(f"{k} {took[k] / 2**20:.0f} of {expected[k] / 2**20:.0f} MiB" for k in expected)
        print(f"{ranks} ranks, {specification}: {said}")
        wrong += [
            f"{specification}: {key} {took[key] / 2**20:.1f} MiB, estimated {size / 2**20:.1f}"
            for key, size in expected.items()
            if abs(took[key] - size) > SHARE * size + FIXED
        ]
    assert not wrong


def test_stage_1_in_bf16_keeps_whole_gradients_in_fp32_beside_those_in_bf16():
    n, config = 2_775_208_960, config_of(zero={"stage": 1}, training={"precision": "bf16"})
    assert state_of(config, n, 8).held == n * (2 + 2 + 4 + 12 / 8)
    assert round(state_of(config, n, 8).held / 2**30, 1) == 24.6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_higher_stage_and_more_ranks_hold_less(precision):
    def held(stage, ranks):
        config = config_of(zero={"stage": stage}, training={"precision": precision})
        return state_of(config, 10**10, ranks).held

    for ranks in (2, 8, 64):
        assert held(0, ranks) > held(1, ranks) > held(2, ranks) > held(3, ranks)
        assert all(held(stage, ranks) > held(stage, 2 * ranks) for stage in (1, 2, 3))
