"""ZeRO-3's parameters come into being divided, with the values that they have at every other stage."""

import pytest
import torch

from latentpt.training.engine import Engine, start_processes
from latentpt.training.trainer import build_model, training_loss
from tests.training.small import CARRIED, tiny_run


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"num_layers": 6}},
        {
            "model": {"family": "gpt2", "num_layers": 6},
            "thoughts": {"method": "pause"},
        },  # embedding and head are one
        {**CARRIED, "model": {"num_layers": 6, "mup_base_width": 9}},
        {"model": {"num_layers": 6}, "thoughts": {"method": "sequential_hidden_decoding"}},
    ],
    ids=["latent", "tied", "carried", "tables"],
)
def test_parameters_are_made_unit_by_unit_and_equal_those_of_a_whole_model(sections, tmp_path):
    *_, device = start_processes()
    config = tiny_run(tmp_path, tmp_path, zero={"stage": 3}, **sections)
    whole, model = build_model(config), build_model(config, on="meta")
    held = []

    def fill(unit):
        held.append(sum(p.numel() for p in model.parameters() if not p.is_meta and not hasattr(p, "ds_id")))
        model.initialize_unit(config.seed, unit)

    engine = Engine(model, training_loss, config.optimizer, config.zero, "fp32", 2, 4, device, fill)
    assert len(held) == 7 and max(held) < 0.75 * sum(p.numel() for p in whole.parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(engine.gather(name)["weight"], parameter), name
    assert engine.shapes == {name: tuple(p.shape) for name, p in whole.named_parameters()}
    groups = engine.optimizer.param_groups
    assert {group["weight_decay"] > 0 for group in groups} == {True, False}
