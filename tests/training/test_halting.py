"""Methods whose tokens think different numbers of slots, trained, interrupted and validated like any other."""

import pytest

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.run import load_model, read_metrics
from latentpt.thoughts.measure import summed_loss
from latentpt.training.trainer import train
from tests.training.small import losses, tiny_run
from tests.training.test_trainer import final_state, plain_losses

ALCOT = {"method": "alcot", "num_thoughts": 2, "threshold": 0.8, "thought_price": 0.1}
PONDER3 = {"method": "ponder3", "num_thoughts": 2, "refinements": [0, 1]}


@pytest.mark.parametrize(
    "thoughts, stage, precision",
    [
        *((thoughts, stage, "fp32") for thoughts in (ALCOT, PONDER3) for stage in (0, 1, 2, 3)),
        (ALCOT, 0, "bf16"),
        (PONDER3, 3, "bf16"),
    ],
)
def test_any_zero_stage_gives_the_plain_curve_also_across_a_resume(
    thoughts, stage, precision, text, tmp_path
):
    def run(name, **training):
        settings = {"precision": precision, **training}
        return tiny_run(tmp_path / name, text, thoughts=thoughts, zero={"stage": stage}, training=settings)

    whole = run("whole")
    train(whole)
    train(run("parts", stop_at=3))
    train(run("parts"))
    ours, theirs = final_state(run("parts")), final_state(whole)
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert losses(whole) == pytest.approx(plain_losses(whole), abs=2e-6 if precision == "fp32" else 2e-2)


def test_recomputing_activations_changes_nothing(text, tmp_path):
    settings = {"checkpoint_activations": True}
    for thoughts in (ALCOT, PONDER3):
        config = tiny_run(tmp_path / thoughts["method"], text, thoughts=thoughts, training=settings)
        train(config)
        assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)


def test_validation_says_how_many_thoughts_there_were(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, thoughts=ALCOT)
    train(config)
    lines = [line for line in read_metrics(config.folder.metrics) if line["kind"] == "validation"]
    assert all(0 < line["thoughts"] < 2 and 1 > line["reach/1"] > line["reach/2"] for line in lines)
    model, _ = load_model(config.folder.path)
    held_out = TokenDataset(config.data.validation, config.data.sequence_length)
    sums = summed_loss(model, validation_batches(held_out, 2, config.validation.samples))
    assert sums.thoughts == pytest.approx(lines[-1]["thoughts"])
    assert sums.nats / sums.tokens == pytest.approx(lines[-1]["loss"], abs=1e-6)  # the price is not in it
