"""A latent model learns from real text what no count of bigrams can know."""

import math
from collections import Counter

import pytest

from latentpt.data.indexed import Shard
from latentpt.training.trainer import train
from tests.training.small import losses, tiny_run, write_text_shards


def bigram_bound(tokens):
    """Cross-entropy in nats of the best bigram model there can be for these very tokens: their H(next | current).

    It is computed from the tokens it is measured on, so no bigram counts of other text, smoothed or not, reach it.
    """
    pairs = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    firsts = Counter(tokens[:-1].tolist())
    return -sum(n * math.log(n / firsts[first]) for (first, _), n in pairs.items()) / (len(tokens) - 1)


@pytest.mark.slow
def test_validation_loss_falls_below_what_any_bigram_model_reaches(tmp_path):
    write_text_shards(tmp_path, 1_000_000)
    config = tiny_run(
        tmp_path / "run",
        tmp_path,
        model={"hidden_size": 64, "num_layers": 2, "num_heads": 2},
        thoughts={"method": "latent", "num_thoughts": 1, "visibility": "stage_causal"},
        data={"sequence_length": 64},
        training={"steps": 150, "batch_samples": 32, "micro_batch": 32},
        optimizer={"lr": 4e-3},
        learning_rate={"warmup": 0.1},
        validation={"every": 150, "samples": 300},
        monitor={"every": 10},
        zero={"stage": 0},
    )
    train(config)
    measured = Shard(tmp_path / "validation").tokens[: 300 * 64 + 1]
    assert losses(config, "validation")[150] < bigram_bound(measured) - 0.1
