"""The operations as torch.library knows them: schemas that tell the truth, and shapes for torch.compile."""

import pytest
import torch
from functorch.compile import make_boxed_func
from latentpt_kernels import add_norm, block_attention, latent_shift, linear_cross_entropy, rotate_qk
from torch._dynamo.backends.common import aot_autograd
from torch.library import opcheck

OPS = torch.ops.latentpt
CHECKS = ("test_schema", "test_faketensor")


def cells(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads(batch, n, count, size, seed=0):
    return cells(batch, n, count, size, seed=seed).transpose(1, 2)


def cases():
    q, k, v = heads(1, 5, 4, 16), heads(1, 5, 2, 16, 1), heads(1, 5, 2, 16, 2)
    numbers = [torch.zeros(1, 5, dtype=torch.int32)] * 2
    out, lse = heads(1, 5, 4, 16, 3), cells(1, 4, 5, seed=4)
    x, weight = cells(6, 8), cells(8, seed=5)
    tokens, states, gate = cells(2, 3, 8), cells(2, 3, 1, 8, seed=6), cells(8, seed=7)
    angles = cells(5, 4, seed=8)
    statistics = cells(6, seed=9), cells(6, seed=10).abs()
    labels = torch.arange(6)
    return {
        "block_attention": (OPS.block_attention, (q, [k, v], [1], 0.25, [])),
        "block_attention, documents": (OPS.block_attention, (q, [k, v], [1], 0.25, numbers)),
        "block_attention_backward": (OPS.block_attention_backward, (out, q, [k, v], out, lse, [2], 0.25, [])),
        "linear_cross_entropy": (
            OPS.linear_cross_entropy,
            (x, cells(11, 8), labels, -100, 0.0, 4, 0.0, True, True),
        ),
        "the loss alone": (
            OPS.linear_cross_entropy,
            (x, cells(11, 8), labels, -100, 0.1, 4, 0.0, False, False),
        ),
        "add_norm": (OPS.add_norm, (x, x + 1, [weight, weight + 1], [weight, weight], 1e-5, True)),
        "a norm alone": (OPS.add_norm, (x, None, [weight], [], 1e-5, False)),
        "add_norm_backward": (OPS.add_norm_backward, ([x], x + 1, x, [weight], True, *statistics, True)),
        "rotate_qk": (OPS.rotate_qk, (q, k, angles, angles, False)),
        "latent_shift": (OPS.latent_shift, (tokens, states, gate, None, 1.5, torch.float32)),
        "latent_shift_backward": (
            OPS.latent_shift_backward,
            (cells(2, 3, 2, 8), tokens, gate, 1.5, torch.float32),
        ),
    }


@pytest.mark.parametrize("mode", ["triton", "torch"])
@pytest.mark.parametrize("name", cases())
def test_what_an_operation_says_of_itself_is_true(name, mode, monkeypatch):
    monkeypatch.setenv("LATENTPT_KERNELS", mode)
    op, arguments = cases()[name]
    opcheck(op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_a_graph_of_all_operations_holds_them_as_leaves(wants_gradient, monkeypatch):
    """Traced forward and backward, not compiled: what inductor would see of a layer and its loss."""
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")
    seen = []

    def compiler(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    def layer(x, weight, head, angles):
        q = x.view(1, 6, 2, 8).transpose(1, 2)
        q, k = rotate_qk(q, q + 1, angles.cos(), angles.sin())
        out, _ = block_attention(q, [(k, q + k, "causal"), (k * 2, q - k, "strict")])
        normed, summed = add_norm(out.transpose(1, 2).reshape(6, 16), x, weight)
        u, _ = latent_shift(normed[None], summed[None, :, None], 2.0)
        return linear_cross_entropy(u[0, :, 1], head, torch.arange(6))

    leaves = [
        t.requires_grad_(wants_gradient) for t in (cells(6, 16), cells(16, seed=1), cells(9, 16, seed=2))
    ]
    angles = cells(6, 4, seed=3)
    compiled = torch.compile(
        layer, backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler), fullgraph=True
    )
    torch.testing.assert_close(compiled(*leaves, angles), layer(*leaves, angles))
    expected = ["block_attention", "rotate_qk", "add_norm", "latent_shift", "linear_cross_entropy"]
    if wants_gradient:
        for mine, plain in zip(
            *(torch.autograd.grad(f(*leaves, angles), leaves) for f in (compiled, layer)), strict=True
        ):
            torch.testing.assert_close(mine, plain)
        expected += ["block_attention_backward", "add_norm_backward", "latent_shift_backward"]
    for name in expected:
        assert any(f"latentpt.{name}.default" in target for target in seen), (name, seen)
