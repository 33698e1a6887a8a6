"""Under ZeRO-3 a norm's weight exists only around its own module: the kernels get it there, forward and backward."""

import pytest
import torch
from latentpt_kernels.on_triton import add_norm

from latentpt.run.sections import OptimizerConfig, ZeroConfig
from latentpt.training.engine import Engine, start_processes
from tests.conftest import tiny_ids, tiny_model


def trained(family, setting, monkeypatch):
    """Losses of two steps under ZeRO-3 and the first moments after them, which are sums of gradients."""
    monkeypatch.setenv("LATENTPT_KERNELS", setting)
    *_, device = start_processes()
    size = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    model = tiny_model(
        family, torch.float32, size=size, method="latent", num_thoughts=1, solver="gauss_seidel"
    )
    engine = Engine(
        model,
        lambda model, ids: model(ids, labels=ids, return_logits=False).loss,
        OptimizerConfig(lr=1e-5),
        ZeroConfig(stage=3),
        "fp32",
        micro_batch=1,
        accumulation=1,
        device=device,
    )
    losses = []
    for seed in range(2):
        losses.append(engine.accumulate(tiny_ids(1, 4, seed=seed)))
        engine.step(1e-5)
    return losses, {name: engine.gather(name)["exp_avg"].clone() for name in engine.names}


@pytest.mark.parametrize("family", ["pythia", "llama"])
def test_two_steps_have_the_same_losses_and_gradients_with_the_kernels_on_and_off(family, monkeypatch):
    calls, backward = [], add_norm.backward
    monkeypatch.setattr(add_norm, "backward", lambda *args: calls.append(1) or backward(*args))
    losses, off = trained(family, "", monkeypatch)
    assert not calls
    losses_on, on = trained(family, "triton", monkeypatch)
    assert calls
    torch.testing.assert_close(losses_on, losses)
    for name, moment in off.items():
        torch.testing.assert_close(
            on[name], moment, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
