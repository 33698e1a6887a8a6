"""The learning rate over a training."""

import pytest

from latentpt.run.sections import LearningRateConfig
from latentpt.training.learning_rate import learning_rate


def rates(total=100, **fields):
    return [learning_rate(LearningRateConfig(**fields), 2.0, step, total) for step in range(total)]


@pytest.mark.parametrize("warmup, steps", [(10, 10), (0.1, 10), (1, 1), (0, 0)])
@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_rises_linearly_to_the_peak(kind, warmup, steps):
    found = rates(kind=kind, warmup=warmup)
    assert found[:steps] == pytest.approx([2.0 * (step + 1) / steps for step in range(steps)])
    assert max(found) <= 2.0
    assert found[steps] == pytest.approx(2.0, rel=1e-3)


def test_cosine_falls_to_the_floor_at_the_last_step_and_is_half_way_in_the_middle():
    found = rates(kind="cosine", warmup=0, floor=0.1)
    assert found[-1] == pytest.approx(0.2)
    assert found[49] == pytest.approx(2.0 * 0.55)
    assert found == sorted(found, reverse=True)


def test_wsd_is_constant_and_then_linear_to_the_floor():
    found = rates(kind="wsd", warmup=10, decay=0.2, floor=0.0)
    assert found[10:80] == [2.0] * 70
    assert found[80:] == pytest.approx([2.0 * (19 - step) / 20 for step in range(20)])


def test_constant_stays_at_the_peak():
    assert rates(kind="constant", warmup=0) == [2.0] * 100


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_trainings_and_steps_beyond_the_end_have_a_rate(kind, total):
    for step in range(total + 2):
        assert 0 < learning_rate(LearningRateConfig(kind=kind), 1.0, step, total) <= 1.0
