"""ZeRO-3's order of fetching, where the number of passes is drawn."""

import pytest

from latentpt.training.engine.traces import Traces
from latentpt.training.trainer import train
from tests.training.small import losses, tiny_run


@pytest.fixture
def thrown_away(monkeypatch):
    """A list that grows whenever DeepSpeed throws its trace away."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    counted = []
    throw_away = PartitionedParameterCoordinator._invalidate_trace
    monkeypatch.setattr(
        PartitionedParameterCoordinator,
        "_invalidate_trace",
        lambda self: (counted.append(None), throw_away(self))[1],
    )
    return counted


def test_every_drawn_number_of_refinements_keeps_its_order_of_fetching(
    text, tmp_path, thrown_away, monkeypatch
):
    def run(name):
        return tiny_run(tmp_path / name, text, zero={"stage": 3}, training={"steps": 24, "batch_samples": 2})

    train(run("kept"))
    assert not thrown_away
    monkeypatch.setattr(Traces, "_change", lambda self: None)
    train(run("lost"))
    print(f"of 24 steps with drawn refinements {len(thrown_away)} lost DeepSpeed's trace, none its own")
    assert thrown_away
    assert losses(run("kept")) == losses(run("lost"))
