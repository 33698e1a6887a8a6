"""The estimated memory against what real trainings hold, counted to the byte."""

import pytest

from latentpt.benchmark.state import state_of
from tests.benchmark.states import ALL, BUCKET, MUON, OFFLOADED, STAGES, config_of, row, rows


def check(name, found):
    """A bucket and a few tensors as large as the largest parameter may come on top.

    AdamW updates parameter by parameter at stage 0, with three tensors of its own, and gradients wait for their bucket; Muon
    has five as it orthogonalises. What is offloaded is updated on the host, with tensors that are nobody's concern.
    """
    measured, estimated, _, largest = found
    tensors = 5 if name in MUON else 3
    spare = 4 * (BUCKET + tensors * largest)
    for what in ("held",) if name in OFFLOADED else ("held", "peak"):
        here, said = getattr(measured, what), getattr(estimated, what)
        assert said <= here * 1.02 + spare and here <= said * 1.02 + spare, (name, what)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STAGES if "bf16" in name])
def test_a_training_holds_what_was_estimated(name):
    check(name, row(config_of(**ALL[name])))


@pytest.mark.slow
def test_one_of_two_ranks_holds_what_was_estimated_whatever_the_optimizer_the_offload_and_the_recomputation():
    names = ["ZeRO 0, fp32", "ZeRO 1, bf16, Muon and an average", "ZeRO 2, fp32", "ZeRO 3, bf16"]
    names += ["ZeRO 3, fp32, offloaded", "ZeRO 1, bf16, 256 tokens, recomputed: block"]
    for name, found in rows(2, names).items():
        check(name, found)


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
