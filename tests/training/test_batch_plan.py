"""From a global batch and a length to steps and accumulation."""

import pytest

from latentpt.config import ConfigError
from latentpt.run.sections import TrainingConfig


def test_batches_and_lengths_are_given_in_tokens_or_in_samples_and_steps():
    tokens = TrainingConfig(tokens=1_000_001, batch_tokens=8192, micro_batch=2)
    samples = TrainingConfig(steps=7, batch_samples=8, micro_batch=2)
    assert (tokens.global_batch(1024), tokens.total_steps(1024)) == (8, 123)
    assert (samples.global_batch(1024), samples.total_steps(1024)) == (8, 7)
    assert [tokens.accumulation(1024, world) for world in (1, 2, 4)] == [4, 2, 1]


@pytest.mark.parametrize(
    "batch, micro, world, message",
    [
        (256, 8, 3, r"micro-batches of 8 on 3 ranks; the nearest values that work are a global batch of 264 samples"),
        (256, 12, 4, r"training.micro_batch = 8 or a global batch of 240 samples"),
        (256, 3, 1, r"on 1 rank; the nearest values that work are training.micro_batch = 2 or a global batch of 255"),
        (4, 8, 2, r"training.micro_batch = 2 or a global batch of 16 samples"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_divided_is_refused_with_what_can(batch, micro, world, message):
    training = TrainingConfig(steps=1, batch_samples=batch, micro_batch=micro)
    with pytest.raises(ConfigError, match=message):
        training.accumulation(1024, world)
