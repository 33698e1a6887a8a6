"""A whole training step and a whole text with the kernels on and off: every method, every visibility, tiny models."""

import pytest
import torch
from latentpt_kernels import block_attention
from latentpt_kernels.on_triton import add_norm as norms
from latentpt_kernels.on_triton import block_attention as kernels
from latentpt_kernels.on_triton import decode, linear_cross_entropy
from latentpt_kernels.on_triton import rotate_qk as rotary

from latentpt.generation.decode import generate
from latentpt.generation.static import why_not_static
from latentpt.modeling import attention as attention_room
from latentpt.thoughts.registry import METHODS
from tests.conftest import VISIBLE, thinking, tiny_ids, tiny_model

SMALL = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
CASES = [(name, {}) for name in METHODS if name != "latent"] + [
    ("latent", {"solver": "jacobi"}),
    ("latent", {"solver": "gauss_seidel"}),
    ("latent", {"visibility": "stage_causal"}),
]


@pytest.fixture
def plain_attention_too(monkeypatch):
    """Plain causal attention, which is a library's own on every device, through the kernels as well."""
    monkeypatch.setitem(
        attention_room.BACKENDS, "sdpa", lambda q, k, v: block_attention(q, [(k, v, "causal")])[0]
    )


def counted(monkeypatch, *places):
    """How often functions (module, name) are called."""
    calls = dict.fromkeys((f"{module.__name__}.{name}" for module, name in places), 0)
    for module, name in places:
        ours, key = getattr(module, name), f"{module.__name__}.{name}"

        def count(*args, ours=ours, key=key, **kwargs):
            calls[key] += 1
            return ours(*args, **kwargs)

        monkeypatch.setattr(module, name, count)
    return calls


def step(family, method, thoughts):
    model = tiny_model(
        family, torch.float32, size=SMALL, weights=1.5, **thinking(method, 1),
        refinements=1, **thoughts,
    )  # fmt: skip
    ids = tiny_ids(1, 6)
    loss = model(ids, labels=ids, return_logits=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("method, thoughts", CASES)
def test_a_training_step_is_the_same_with_the_kernels_on_and_off(
    method, thoughts, plain_attention_too, monkeypatch
):
    family = "pythia" if len(method) % 2 else "llama"
    calls = counted(
        monkeypatch, (kernels, "forward"), (kernels, "backward"), (norms, "forward"), (norms, "backward"),
        (rotary, "rotate"), (linear_cross_entropy, "loss_and_gradient"),
    )  # fmt: skip
    monkeypatch.setenv("LATENTPT_KERNELS", "reference")
    off = step(family, method, thoughts)
    assert not any(calls.values())
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")
    on = step(family, method, thoughts)
    assert all(calls.values()), calls
    for mine, exact in zip(on, off, strict=True):
        torch.testing.assert_close(mine, exact, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method, visibility", VISIBLE)
def test_a_text_is_the_same_with_the_kernels_on_and_off(method, visibility, monkeypatch):
    """A ragged batch, greedy; grouped queries in llama."""
    family = {0: "pythia", 1: "llama", 2: "gpt2"}[len(method + visibility) % 3]
    model = tiny_model(family, torch.float32, size=SMALL, **thinking(method, 1), visibility=visibility)
    calls = counted(monkeypatch, (decode, "qkv"), (decode, "attention"), (decode, "linear"))
    texts = []
    for setting in ("", "triton"):
        monkeypatch.setenv("LATENTPT_KERNELS", setting)
        assert not any(calls.values())
        texts.append(generate(model, [[3, 4, 5], [6]], 3))
    assert texts[0] == texts[1]
    assert bool(calls[f"{decode.__name__}.attention"]) == (why_not_static(model) is None)
    if method == "latent":  # slot by slot; slots of which none waits for another run at once, layer by layer
        assert all(calls.values()), calls
