"""Every method trains under every partition, stops and goes on, as in one process by hand."""

import pytest

from latentpt.training.trainer import train
from tests.training.small import losses, tiny_run
from tests.training.test_trainer import plain_losses

LATE = [{"until_step": 0.5}]
METHODS = {
    "mid_loop": {"num_thoughts": 1, "curriculum": LATE},
    "latent": {"num_thoughts": 1, "visibility": "stage_causal", "span": "middle"},
    "smear": {"injection": "norm"},
    "p2n": {"refinements": [2, 3]},
    "dual_slot": {"num_thoughts": 1, "visibility": "stage_causal", "injection": "gate"},
    "hybrid": {"num_thoughts": 1, "refinements": [0, 1]},
}


@pytest.mark.parametrize("stage", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_is_the_plain_one(method, stage, text, tmp_path):
    def run(name, **training):
        thoughts = {"method": method, "num_thoughts": 0, **METHODS[method]}
        model = {"num_layers": 3}
        return tiny_run(
            tmp_path / name, text, model=model, thoughts=thoughts, zero={"stage": stage}, training=training
        )

    expected = plain_losses(run("parts"))
    train(run("parts", stop_at=3))
    train(run("parts"))
    assert losses(run("parts")) == pytest.approx(expected, abs=2e-6)
    assert len(losses(run("parts"), "validation")) == 2
