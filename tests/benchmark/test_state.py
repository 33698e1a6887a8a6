"""The estimated state against what real trainings hold, counted to the byte: every stage and precision, one process."""

import gc
import itertools

import pytest
import torch

from latentpt.benchmark.memory import PeakMemory
from latentpt.benchmark.state import state_of
from latentpt.run import RunConfig
from latentpt.training.engine import Engine, start_processes
from latentpt.training.trainer import build_model, training_loss

BUCKET = 10_000
PAIRS = list(itertools.product(range(4), ("fp32", "bf16")))


def config_of(**sections):
    """A million parameters, eight tokens: what is counted is the state."""
    values = {
        "model": {"family": "llama", "vocab_size": 256, "hidden_size": 128, "num_layers": 4, "num_heads": 4, "max_positions": 64},
        "data": {"train": "x", "sequence_length": 8},
        "training": {"steps": 2, "batch_samples": 2, "micro_batch": 1},
        "zero": {"bucket": BUCKET},
    }  # fmt: skip
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    return RunConfig(**values)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), PAIRS)
def test_a_training_holds_what_was_estimated(stage, precision):
    """Between two micro-batches, and at the peak of the optimizer step; a bucket and one matrix may come on top.

    At stage 0 AdamW updates parameter by parameter on a CPU, with three tensors of its own for each.
    """
    config = config_of(zero={"stage": stage}, training={"precision": precision})
    _, _, device = start_processes()
    with PeakMemory() as memory:
        model = build_model(config)
        engine = Engine(model, training_loss, config.optimizer, config.zero, precision, 1, 2, device)
        tokens, schedule = torch.zeros(1, 9, dtype=torch.long), model.training_schedule(0, 0)
        engine.accumulate(tokens, schedule, None, None, None)
        gc.collect()
        held = memory.now
        engine.accumulate(tokens, schedule, None, None, None)
        gc.collect()
        memory.peak = memory.now
        engine.step(1e-3)
    n = sum(torch.Size(shape).numel() for shape in engine.shapes.values())
    largest = max(torch.Size(shape).numel() for shape in engine.shapes.values())
    state, spare = state_of(config, n, 1, fused=False), 4 * (BUCKET + 256 * 128)
    spare += 3 * 4 * largest * (stage == 0)
    assert state.held <= held * 1.01 and held <= state.held * 1.01 + spare
    expected = state.held + state.step
    assert expected <= memory.peak * 1.01 + spare and memory.peak <= expected * 1.01 + spare


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
