"""A whole training step and a whole text with the kernels on and off: every method, every visibility, tiny models.

The library calls latentpt_kernels for key blocks and the loss; `plugged_in` puts the other operations where they belong.
"""

import pytest
import torch
from latentpt_kernels import (
    add_norm,
    block_attention,
    decode_linear,
    decode_token,
    rotate_qk,
)
from latentpt_kernels.decode import Layer, Norm
from latentpt_kernels.on_triton import block_attention as kernels
from torch import nn

from latentpt.modeling import attention as attention_room
from latentpt.modeling.rotary import Rotary
from latentpt.thoughts.plan import Visibility
from latentpt.thoughts.registry import METHODS
from latentpt.thoughts.state import Before
from tests.conftest import thinking, tiny_ids, tiny_model

SMALL = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
CASES = [(name, {}) for name in METHODS if name != "latent"] + [
    ("latent", {"solver": "jacobi"}),
    ("latent", {"solver": "gauss_seidel"}),
    ("latent", {"visibility": "stage_causal"}),
]


def squeezed(angles):
    """cos and sin [L, r/2]: one angle for all slots of a position."""
    return None if angles is None else Rotary(*(part[..., 0, :] for part in angles))


@pytest.fixture
def plugged_in(monkeypatch):
    """Rotary, norms and plain causal attention through latentpt_kernels; key blocks and the loss go there by themselves."""

    def rotate(x, angles):
        flat = x.flatten(1, 2).transpose(1, 2)
        turned, _ = rotate_qk(flat, flat[:, :1], *squeezed(angles))
        return turned.transpose(1, 2).unflatten(1, x.shape[1:3])

    def normed(kind):
        def forward(self, x):
            return add_norm(x, None, self.weight, getattr(self, "bias", None), self.eps, kind)[0]

        return forward

    monkeypatch.setitem(
        attention_room.BACKENDS, "sdpa", lambda q, k, v: block_attention(q, [(k, v, "causal")])[0]
    )
    monkeypatch.setattr(attention_room, "rotate", rotate)
    monkeypatch.setattr(nn.RMSNorm, "forward", normed("rms"))
    monkeypatch.setattr(nn.LayerNorm, "forward", normed("layer"))


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
def test_a_training_step_is_the_same_with_the_kernels_on_and_off(method, thoughts, plugged_in, monkeypatch):
    family = "pythia" if len(method) % 2 else "llama"
    calls = []
    forward = kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *args: calls.append(1) or forward(*args))
    monkeypatch.setenv("LATENTPT_KERNELS", "reference")
    off = step(family, method, thoughts)
    assert not calls
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")
    on = step(family, method, thoughts)
    assert calls
    for mine, exact in zip(on, off, strict=True):
        torch.testing.assert_close(mine, exact, rtol=2e-4, atol=2e-5)


def layers_of(model):
    """The weights of the blocks as decoding's kernels read them."""
    config = model.config

    def norm(module):
        return Norm(module.weight, getattr(module, "bias", None), module.eps, config.norm)

    return [
        Layer(
            norm(b.attention_norm), b.attention.qkv.weight, b.attention.qkv.bias, b.attention.out.weight,
            b.attention.out.bias, norm(b.mlp_norm), b.mlp.up.weight, b.mlp.up.bias, b.mlp.down.weight, b.mlp.down.bias,
            config.activation, config.parallel_residual,
        )
        for b in model.decoder.blocks
    ]  # fmt: skip


SEEN = {
    Visibility.CAUSAL: lambda slots: lambda slot: (0, slots),
    Visibility.STAGE_CAUSAL: lambda slots: lambda slot: (0, slot + 1),
    Visibility.SAME_SLOT: lambda slots: lambda slot: (slot, slot + 1),
}


@torch.no_grad()
def text(model, length):
    """Greedy ids of two rows, found by the kernels; cells, caches and angles as a captured graph would hold them."""
    config, method, decoder = model.config, model.method, model.decoder
    slots, layers, final = method.slots, layers_of(model), decoder.norm
    shape = (2, config.kv_heads, length * slots, config.head_width)
    cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in layers]
    cells, angles = torch.zeros(1, dtype=torch.int32), squeezed(decoder.angles(torch.arange(length)))
    ids = [torch.tensor([3, 5])]
    for position in range(length):
        tokens = method.tokens(decoder, ids[-1][:, None], torch.full((1,), position))

        def latents(x, u, slot, tokens=tokens):
            before = Before(u[:, None, None], method.states(decoder, x[:, None, None]))
            return method.inject(decoder, tokens, range(slot, slot + 1), before)[:, 0, 0]

        x = decode_token(
            tokens.embeds[:, 0, 0],
            layers,
            cache,
            cells,
            slots,
            SEEN[method.visibility](slots),
            latents,
            angles,
        )
        norm = Norm(final.weight, getattr(final, "bias", None), final.eps, config.norm)
        ids.append(decode_linear(x, decoder.head.weight, norm=norm).argmax(-1))
    return torch.stack(ids, dim=1)


@pytest.mark.parametrize(
    "family, method, visibility",
    [
        ("pythia", "latent", "causal"),
        ("llama", "latent", "stage_causal"),
        ("llama", "loop", "causal"),
        ("gpt2", "latent", "causal"),
    ],
)
def test_a_text_by_the_kernels_is_the_text_of_exact_decoding(family, method, visibility, monkeypatch):
    model = tiny_model(
        family, torch.float32, size=SMALL, method=method, num_thoughts=1, visibility=visibility
    )
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")
    found = text(model, 3)
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    assert torch.equal(found, text(model, 3))
    hidden = model.think(found[:, :-1], model.method.exact_schedule())
    assert torch.equal(model.decoder.head(hidden).argmax(-1), found[:, 1:])
