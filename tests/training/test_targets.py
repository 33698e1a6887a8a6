"""Targets without loss: the loss of a step is the mean over the targets of its global batch, wherever they lie."""

import math
from pathlib import Path

import pytest

from latentpt.data.batches import BatchStream, TokenDataset
from latentpt.modeling.loss import IGNORE
from latentpt.training import trainer
from tests.training.small import finish, losses, sparse_targets, start_ranks, tiny_run
from tests.training.test_trainer import plain_losses

WORKER = Path(__file__).with_name("two_ranks.py")


@pytest.fixture
def sparse(monkeypatch):
    monkeypatch.setattr(trainer, "targets_of", sparse_targets)


def counts(config):
    """Targets of every micro-batch of one process."""
    data, settings = TokenDataset(config.data.train, config.data.sequence_length), config.training
    with BatchStream(data, config.seed, settings.batch_samples, settings.micro_batch) as stream:
        batches = [next(stream) for _ in range(config.steps * settings.batch_samples // settings.micro_batch)]
    return [int((sparse_targets(batch) != IGNORE).sum()) for batch in batches]


@pytest.mark.parametrize(
    "stage, precision", [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16")]
)
def test_the_loss_and_the_step_are_those_of_the_whole_batch(stage, precision, sparse, text, tmp_path):
    config = tiny_run(tmp_path, text, zero={"stage": stage}, training={"precision": precision})
    found = counts(config)
    assert 0 in found and len(set(found)) > 4, (
        "the samples have to be uneven, and a micro-batch without targets among them"
    )
    trainer.train(config)
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6 if precision == "fp32" else 2e-2)


@pytest.mark.slow
def test_two_ranks_divide_by_the_targets_of_both(sparse, text, tmp_path):
    finish(start_ranks(2, WORKER, text, tmp_path, "ignoring"))
    alone = tiny_run(tmp_path / "alone", text)
    trainer.train(alone)
    assert losses(tiny_run(tmp_path / "all-stages", text)) == pytest.approx(losses(alone), abs=2e-6)


def test_a_batch_without_any_target_has_loss_0_and_is_no_diverged_step(text, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "targets_of", lambda tokens: tokens[:, 1:].clone().fill_(IGNORE))
    config = tiny_run(tmp_path, text, training={"steps": 2})
    assert trainer.train(config).skipped == 0
    assert set(losses(config).values()) == {0.0}
    assert all(math.isfinite(loss) for loss in losses(config, "validation").values())
