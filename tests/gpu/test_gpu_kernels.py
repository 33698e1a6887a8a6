"""Every kernel at real sizes against float64 or float32 on the device, and bitwise from run to run."""

import pytest
import torch
import torch.nn.functional as F
from latentpt_kernels import (
    add_norm,
    add_norms,
    block_attention,
    dispatch,
    latent_shift,
    linear_cross_entropy,
    rotate_qk,
)
from latentpt_kernels.decode import Norm, Place, decode_attention, decode_linear
from latentpt_kernels.linear_cross_entropy import reference
from latentpt_kernels.merged_attention import backward, dense, forward, kernels_for

from tests.kernels.checks import assert_within_twice, in_precision

PRECISIONS = [torch.bfloat16, torch.float16, torch.float32]
DEVICE = "cuda"


@pytest.fixture
def by_triton(monkeypatch):
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def attention_case(relations, n, size, heads=8, kv_heads=4, rows=2):
    q = random(rows, n, heads, size).transpose(1, 2)
    kv = []
    for index, relation in enumerate(relations):
        m = 777 if relation == "all" else n
        kv += [random(rows, m, kv_heads, size, seed=2 * index + i + 1).transpose(1, 2) for i in range(2)]
    return q, kv


# Every head size once, every precision at the usual ones: a kernel takes seconds to compile.
ATTENTION = [
    *((["causal", "strict", "all"], 1000, size, torch.bfloat16) for size in (32, 64, 80, 96, 128, 256)),
    *((["causal"], 2048, size, dtype) for size in (64, 128) for dtype in (torch.float16, torch.float32)),
    (["causal"] * 4, 300, 64, torch.bfloat16),
]


@pytest.mark.parametrize("relations, n, size, dtype", ATTENTION)
def test_attention_at_real_sizes(relations, n, size, dtype, by_triton):
    low = in_precision(dtype, *(lambda q, kv: (q, *kv))(*attention_case(relations, n, size)))
    seed, results = random(*low[0].shape, seed=50).to(dtype), []
    for leaves in (low, in_precision(dtype, *low), in_precision(torch.float64, *low)):
        if leaves is low:
            blocks = list(zip(leaves[1::2], leaves[2::2], relations, strict=True))
            out, lse = block_attention(leaves[0], blocks)
        else:
            out, lse = dense(leaves[0], leaves[1:], relations, size**-0.5)
        results.append((out, lse, *torch.autograd.grad(out, leaves, seed.to(out.dtype))))
    for index, (mine, plain, exact) in enumerate(zip(*results, strict=True)):
        assert_within_twice(f"result {index}", mine, plain, exact)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("relations", [["causal"], ["causal", "strict", "all"]])
@pytest.mark.parametrize("size", [64, 128])
def test_every_library_merges_to_the_same_attention_and_gradients(relations, size, dtype):
    """flash, cuDNN and efficient attention, their backward given the merged out and lse."""
    q, kv = attention_case(relations, 500, size, kv_heads=8)
    q, kv = q.to(dtype), [t.to(dtype) for t in kv]
    leaves = in_precision(torch.float64, q, *kv)
    exact, exact_lse = dense(leaves[0], leaves[1:], relations, size**-0.5)
    seed = random(*q.shape, seed=50).to(dtype)
    gradients = torch.autograd.grad(exact, leaves, seed.double())
    close = {"atol": 3e-2, "rtol": 2e-2} if dtype != torch.float32 else {"atol": 2e-4, "rtol": 2e-4}
    for name, kernel in kernels_for(q).items():
        out, lse = forward(kernel, q, kv, relations, size**-0.5)
        found = backward(kernel, seed, q, kv, out, lse, relations, size**-0.5)
        for mine, other in zip((out, lse, *found), (exact, exact_lse, *gradients), strict=True):
            torch.testing.assert_close(
                mine.double(), other.double(), **close, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("documents", [False, True])
def test_attention_repeats_bit_for_bit(documents, by_triton):
    q, kv = attention_case(["causal", "strict"], 1500, 64)
    leaves = in_precision(torch.bfloat16, q, *kv)
    numbers = [torch.arange(1500, device=DEVICE).expand(2, -1) // 400] * 3 if documents else None
    blocks = list(zip(leaves[1::2], leaves[2::2], ["causal", "strict"], strict=True))
    runs = []
    for _ in range(3):
        out, lse = block_attention(leaves[0], blocks, documents=numbers)
        runs.append((out, lse, *torch.autograd.grad(out.float().square().sum(), leaves)))
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_loss_at_a_real_vocabulary(dtype, by_triton):
    low = in_precision(dtype, random(3000, 512), random(50304, 512, seed=1) / 20)
    targets = torch.randint(50304, (3000,), device=DEVICE)
    targets[::5] = -100
    results = []
    for leaves in (low, in_precision(dtype, *low), in_precision(torch.float64, *low)):
        loss = (
            linear_cross_entropy(*leaves, targets, z_loss=1e-4, chunk_rows=1024)
            if leaves is low
            else reference(*leaves, targets, -100, 1e-4)
        )
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for name, mine, plain, exact in zip(("loss", "dhidden", "dweight"), *results, strict=True):
        assert_within_twice(name, mine, plain, exact)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_add_and_norm_at_real_sizes(kind, dtype, by_triton):
    low = in_precision(
        dtype, random(5000, 2560), random(5000, 2560, seed=1), 1 + random(2560) / 4, 1 + random(2560) / 5
    )
    seeds = [random(5000, 2560, seed=5 + i).to(dtype) for i in range(3)]
    results = []
    for leaves in (low, in_precision(dtype, *low), in_precision(torch.float64, *low)):
        if leaves is low:
            normed, summed = add_norms(*leaves[:2], leaves[2:], [None, None], 1e-5, kind)
        else:
            summed, function = leaves[0] + leaves[1], F.layer_norm if kind == "layer" else F.rms_norm
            normed = [function(summed, (2560,), weight=w, eps=1e-5) for w in leaves[2:]]
        outs = [*normed, summed]
        grads = torch.autograd.grad(outs, leaves, [s.to(summed.dtype) for s in seeds])
        results.append((*outs, *grads))
    for index, (mine, plain, exact) in enumerate(zip(*results, strict=True)):
        assert_within_twice(f"result {index}", mine, plain, exact)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_rotary_and_shift_equal_torch(dtype, monkeypatch):
    q, k = (random(2, 4096, h, 64, seed=h).to(dtype).transpose(1, 2) for h in (8, 4))
    angles = random(2048, 8)
    tokens, states = random(2, 1000, 512).to(dtype), random(2, 1000, 3, 512, seed=1).to(dtype)
    results = []
    for mode in ("triton", "reference"):
        monkeypatch.setenv("LATENTPT_KERNELS", mode)
        results.append([*rotate_qk(q, k, angles.cos(), angles.sin()), latent_shift(tokens, states, 1.5)[0]])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("seen", [(0, 3), (0, 2), (1, 2)])
def test_decode_attention_at_real_sizes(rows, seen, monkeypatch):
    q, k, v = random(rows, 16, 64), random(rows, 4, 6000, 64, seed=1), random(rows, 4, 6000, 64, seed=2)
    q, k, v = (t.bfloat16() for t in (q, k, v))
    cells = (3 * torch.randint(1999, (rows,), device=DEVICE) + seen[1] - 1).int()
    results = []
    for mode, wide in (("triton", False), ("torch", False), ("torch", True)):
        monkeypatch.setenv("LATENTPT_KERNELS", mode)
        tensors = (t.double() if wide else t for t in (q, k, v))
        results.append(decode_attention(*tensors, Place(cells, 3, seen)))
    assert_within_twice("out", *results)


@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_decode_linear_at_real_sizes(rows, activation, monkeypatch):
    x, w, scale = (
        random(rows, 1024).bfloat16(),
        (random(4096, 1024, seed=1) / 32).bfloat16(),
        random(1024, seed=2).bfloat16(),
    )
    results = []
    for mode, wide in (("triton", False), ("torch", False), ("torch", True)):
        monkeypatch.setenv("LATENTPT_KERNELS", mode)
        a, b, c = (t.double() if wide else t for t in (x, w, scale))
        results.append(decode_linear(a, b, norm=Norm(c, None, 1e-5, "rms"), activation=activation))
    assert_within_twice("out", *results)


def test_the_choice_is_measured_once_a_shape_and_kept(monkeypatch):
    monkeypatch.delenv("LATENTPT_KERNELS", raising=False)
    q, kv = attention_case(["causal"], 256, 64)
    for _ in range(2):
        block_attention(q.bfloat16(), [(kv[0].bfloat16(), kv[1].bfloat16(), "causal")])
    assert (
        sum(name.startswith("block_attention (2, 8, 4, 64, (256, 256)") for name in dispatch.choices()) == 1
    )


def test_compiled_with_inductor_the_operations_are_leaves_and_agree():
    q, kv = attention_case(["causal", "strict"], 256, 64)
    leaves = in_precision(torch.bfloat16, q, *kv)
    weight = torch.ones(64, device=DEVICE, dtype=torch.bfloat16)

    def layer(q, *kv):
        out, _ = block_attention(q, [(kv[0], kv[1], "causal"), (kv[2], kv[3], "strict")])
        return add_norm(out, q, weight)[0]

    compiled = torch.compile(layer, fullgraph=True)
    results = [torch.autograd.grad(f(*leaves).float().square().sum(), leaves) for f in (layer, compiled)]
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=5e-2, rtol=5e-2)
