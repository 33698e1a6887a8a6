"""muP: what one step of training moves does not depend on the width."""

import pytest
import torch

from latentpt.config import ConfigError, build
from latentpt.modeling.config import ModelConfig
from latentpt.run.sections import OptimizerConfig
from latentpt.training.engine.optimizers import parameter_groups
from tests.conftest import tiny_ids, tiny_model

WIDTHS = (16, 64, 256)


def coordinates(width, base, method):
    """How large stream and logits are, and how far ten steps have moved both: root mean squares."""
    thoughts = {"method": method, "num_thoughts": int(method != "vanilla"), "embed_scale": None}
    heads = {"num_heads": width // 8, "num_kv_heads": 0}
    size = {"hidden_size": width, "intermediate_size": 4 * width, "mup_base_width": base, **heads}
    model = tiny_model("llama", size=size, dtype=torch.float32, **thoughts)
    model.initialize(3)
    ids = tiny_ids(length=12)
    found = []
    adam = torch.optim.AdamW(parameter_groups(model, OptimizerConfig(lr=4e-3, weight_decay=0.0)), lr=1.0)
    for group in adam.param_groups:
        group["lr"] = 4e-3 * group["scale"]
    for step in range(11):
        hidden = model.think(ids)
        logits = model.decoder.head(hidden)
        if step in (0, 10):
            found.append((hidden.detach(), logits.detach()))
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        adam.step()
        adam.zero_grad()
    return torch.stack(
        [(after - before).square().mean().sqrt() for before, after in zip(*found, strict=True)]
    )


@pytest.mark.parametrize("method", ["vanilla", "latent"])
def test_what_ten_steps_move_is_the_same_at_all_widths_with_mup_and_grows_without(method):
    with_mup = torch.stack([coordinates(width, 16, method) for width in WIDTHS])
    without = torch.stack([coordinates(width, None, method) for width in WIDTHS])
    grown = [(each[-1] / each[0]).tolist() for each in (with_mup, without)]  # of hidden states, of logits
    assert all(0.5 < factor < 1.5 for factor in grown[0])
    assert grown[1][1] > 2.3


def test_at_the_base_width_nothing_is_changed():
    thoughts = {"method": "latent", "num_thoughts": 1, "embed_scale": None}
    plain = tiny_model("llama", **thoughts)
    scaled = tiny_model("llama", size={"mup_base_width": plain.config.hidden_size}, **thoughts)
    for model in (plain, scaled):
        model.initialize(1)
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-12)
    assert all(group["scale"] == pytest.approx(1) for group in parameter_groups(scaled, OptimizerConfig()))


def test_learning_rates_and_decay_follow_from_the_width():
    model = tiny_model(
        "llama",
        size={"hidden_size": 64, "num_heads": 8, "mup_base_width": 16},
        method="latent",
        num_thoughts=1,
        embed_scale=10.0,
    )
    for kind, of_matrices in ((OptimizerConfig(), 1 / 4), (OptimizerConfig(kind="muon"), 1 / 2)):
        groups = parameter_groups(model, kind)
        rate = {p: group["scale"] for group in groups for p in group["params"]}
        assert rate[model.decoder.blocks[0].mlp.down.weight] == of_matrices
        assert rate[model.decoder.head.weight] == 1 / 4
        assert rate[model.decoder.embedding.weight] == pytest.approx((2.5 * 16) ** 0.5 / 10)
        assert rate[model.decoder.norm.weight] == 1
        assert {round(group["scale"] * group["weight_decay"], 9) for group in groups} == {0.1, 0.0}


def test_tied_embeddings_are_refused():
    with pytest.raises(ConfigError, match=r"model.mup_base_width needs model.tie_embeddings = false"):
        build(ModelConfig, {"mup_base_width": 64, "tie_embeddings": True})
