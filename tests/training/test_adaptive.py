"""Refinements chosen from the residuals of the step before."""

from small import losses, tiny_run

from latentpt.run import read_metrics
from latentpt.training.adaptive import AdaptiveRefinements
from latentpt.training.trainer import train
from tests.conftest import tiny_model


def chosen(target, observed, state=None):
    """K of successive steps, after each of which the next of `observed` is seen, and the K that would follow."""
    model = tiny_model(method="latent", num_thoughts=1, refinements=(1, 4), residual_target=target)
    adaptive = AdaptiveRefinements(model.method, state)
    found = []
    for step, residuals in enumerate(observed):
        found.append(adaptive.schedule(step).refinements)
        adaptive.observe(residuals[: found[-1]])
    return found, adaptive.refinements


def test_the_smallest_sufficient_number_is_taken_in_the_next_step():
    contracting = [0.3, 0.05, 0.008, 0.001]
    assert chosen(0.1, [contracting] * 4) == ([4, 2, 2, 2], 2)
    assert chosen(0.5, [contracting] * 3) == ([4, 1, 1], 1)


def test_refinements_grow_one_by_one_while_none_suffices_and_stay_in_their_range():
    stubborn = [0.9, 0.8, 0.7, 0.6]
    found, _ = chosen(0.1, [stubborn] * 6, state=1)
    assert found == [1, 2, 3, 4, 4, 4]


def test_the_state_of_a_checkpoint_continues_the_sequence():
    observed = [[0.3, 0.05, 0.008, 0.001]] * 3 + [[0.9, 0.5, 0.3, 0.05]] * 5
    whole, _ = chosen(0.1, observed)
    first, state = chosen(0.1, observed[:4])
    rest, _ = chosen(0.1, observed[4:], state)
    assert first + rest == whole


def test_a_training_with_adapted_refinements_resumes_bit_by_bit_and_logs_its_residuals(text, tmp_path):
    def run(name, **training):
        thoughts = {"method": "latent", "num_thoughts": 1, "refinements": [1, 4], "residual_target": 0.02}
        return tiny_run(tmp_path / name, text, thoughts=thoughts, training=training)

    whole = run("whole")
    train(whole)
    train(run("parts", stop_at=5))
    train(run("parts"))
    assert losses(run("parts")) == losses(whole)
    lines = [line for line in read_metrics(whole.folder.metrics) if line["kind"] == "train"]
    assert len({line["refinements"] for line in lines}) > 1
    for line in lines:
        moved = [line[f"residual/{k}"] for k in range(1, line["refinements"] + 1)]
        assert len(moved) >= 1 and all(0 < value < 1 for value in moved)
