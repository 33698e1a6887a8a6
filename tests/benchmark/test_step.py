"""The side-by-side measurement, with a second model of ours in the place of the published one."""

import pytest
import torch
from torch import nn

from latentpt.benchmark import step
from latentpt.config import ConfigError
from latentpt.hub import to_hf
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig

MODEL = ModelConfig(family="llama", vocab_size=50, hidden_size=16, num_layers=2, num_heads=2)
THOUGHTS = ThoughtsConfig(method="latent", num_thoughts=1, refinements=1)


def contender(name="ours"):
    return step.ours(name, MODEL, THOUGHTS, "cpu", torch.float32)


def disguised(theirs):
    """The same model under Hugging Face names, as the published code has them."""
    _, weights = to_hf(theirs.module)

    class Published(nn.Module):
        def zero_grad(self, set_to_none=True):
            theirs.module.zero_grad(set_to_none)

        def named_parameters(self, *args, **kwargs):
            for parameter in theirs.module.parameters():
                parameter.data = parameter.grad
            _, gradients = to_hf(theirs.module)
            for name, value in weights.items():
                parameter = nn.Parameter(value)
                parameter.grad = gradients[name]
                yield name, parameter

    return step.Contender("published", Published(), theirs.loss, 0.0)


def test_the_gate_opens_for_equal_loss_and_gradients_and_for_nothing_else():
    ids = torch.randint(50, (2, 9))
    mine = contender()
    errors = step.gate(mine, disguised(contender()), ids, 1e-6)
    assert errors["loss"] == 0 and errors["gradients"] < 1e-6
    for wrong in (lambda w: w.mul_(1.01), lambda w: w.add_(0.01)):
        other = contender()
        with torch.no_grad():
            wrong(other.module.decoder.blocks[0].mlp.down.weight)
        with pytest.raises(ConfigError, match="nothing was timed"):
            step.gate(contender(), disguised(other), ids, 1e-6)


def test_every_solver_is_measured_beside_no_thoughts():
    text = step.run(MODEL, THOUGHTS, 2, 16, 2, "cpu", torch.float32, None)
    for name in ("jacobi K=1", "2 with gradient", "gauss_seidel", "stage_causal", "vanilla"):
        assert name in text


def test_a_folder_without_the_published_code_is_named():
    with pytest.raises(ConfigError, match="is no checkout of the published code"):
        step.run(
            MODEL, THOUGHTS, 2, 16, 1, "cpu", torch.float32, reference=__import__("pathlib").Path("docs")
        )
