"""What is measured: every operation at sizes of a Pythia or LLaMA of 410M, with its floor and its rivals.

A case is a function of (device, dtype, dry) that yields (name, bytes, FLOPs, {implementation: function}); `dry` makes
everything small, so that the code runs on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from latentpt_kernels import (
    add_norm,
    block_attention,
    latent_shift,
    linear_cross_entropy,
    merged_attention,
    rotate_qk,
)
from latentpt_kernels.add_norm import add_norms
from latentpt_kernels.decode import Layer, Norm, Place, decode_attention, decode_layer, decode_linear

Case = tuple[str, float, float, dict[str, Callable[[], object]]]


def with_gradients(
    run: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]], leaves: list[torch.Tensor]
) -> Callable[[], object]:
    """Forward and backward."""
    first = run()
    seeds = [torch.ones_like(out) for out in (first if isinstance(first, tuple) else (first,))]

    def both() -> object:
        out = run()
        return torch.autograd.grad(out if isinstance(out, tuple) else (out,), leaves, seeds)

    return both


def attention(device: torch.device, dtype: torch.dtype, dry: bool) -> Iterator[Case]:
    """Stage attention: two causal blocks, forward and backward; 3.5 times the forward's FLOPs."""
    batch, n = (1, 32) if dry else (8, 2048)
    for size, heads in ((64, 2 if dry else 16), (128, 1 if dry else 8)):
        leaves = [
            torch.randn(batch, n, heads, size, device=device, dtype=dtype).requires_grad_() for _ in range(5)
        ]
        q, *kv = (t.transpose(1, 2) for t in leaves)
        blocks = [(kv[0], kv[1], "causal"), (kv[2], kv[3], "causal")]
        flops = 3.5 * 4 * size * heads * batch * n * (n + 1)  # two blocks of n (n + 1) / 2 pairs
        ways: dict[str, Callable[[], object]] = {
            "latentpt_kernels": with_gradients(lambda q=q, b=blocks: block_attention(q, b)[0], leaves),
            "eager, dense mask": with_gradients(lambda q=q, kv=kv: _dense(q, kv), leaves),
        }
        for name, kernel in merged_attention.kernels_for(q).items():
            ways[f"{name}, merged"] = functools.partial(_merged, kernel, q, kv)
        if device.type == "cuda":
            ways["FlexAttention"] = with_gradients(_flex(q, kv), leaves)
        yield f"2 causal blocks of {n}, {heads} heads of {size}", 0.0, flops, ways


def _merged(kernel: type[merged_attention.Kernel], q: torch.Tensor, kv: list[torch.Tensor]) -> object:
    """One library's attention, forward and backward, merged by log-sum-exp."""
    relations, scale = ("causal", "causal"), q.shape[-1] ** -0.5
    with torch.no_grad():
        out, lse = merged_attention.forward(kernel, q, kv, relations, scale)
        return merged_attention.backward(kernel, out, q, kv, out, lse, relations, scale)


def _dense(q: torch.Tensor, kv: list[torch.Tensor]) -> torch.Tensor:
    n = q.shape[2]
    mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril().repeat(1, 2)
    return F.scaled_dot_product_attention(q, torch.cat(kv[::2], 2), torch.cat(kv[1::2], 2), mask)


def _flex(q: torch.Tensor, kv: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    n = q.shape[2]
    mask = create_block_mask(lambda b, h, i, j: (j % n) <= i, None, None, n, 2 * n, device=q.device.type)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, torch.cat(kv[::2], 2), torch.cat(kv[1::2], 2), block_mask=mask)


def loss(device: torch.device, dtype: torch.dtype, dry: bool) -> Iterator[Case]:
    """The fused loss with both gradients: three products."""
    rows, vocabulary, width = (64, 300, 32) if dry else (16384, 50304, 1024)
    hidden = torch.randn(rows, width, device=device, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), device=device)
    leaves = [hidden, weight]

    def plain() -> torch.Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")

    ways = {
        "latentpt_kernels": with_gradients(lambda: linear_cross_entropy(hidden, weight, targets), leaves),
        "eager, all logits": with_gradients(plain, leaves),
    }
    if not dry:
        ways["torch.compile"] = with_gradients(torch.compile(plain), leaves)
    yield f"{rows} rows, V {vocabulary}, d {width}", 0.0, 6.0 * rows * vocabulary * width, ways


def norm(device: torch.device, dtype: torch.dtype, dry: bool) -> Iterator[Case]:
    """Residual add and norm, forward and backward: 8 d numbers a row (RMS), 10 d (two layer norms of one row)."""
    rows, width = (64, 32) if dry else (2**16, 1024)
    tensors = [torch.randn(rows, width, device=device, dtype=dtype).requires_grad_() for _ in range(2)]
    weights = [torch.ones(width, device=device, dtype=dtype).requires_grad_() for _ in range(4)]

    def rms() -> tuple[torch.Tensor, ...]:
        return add_norm(*tensors, weights[0])

    def eager() -> tuple[torch.Tensor, ...]:
        summed = tensors[0] + tensors[1]
        return F.rms_norm(summed, (width,), weights[0], 1e-5), summed

    def both() -> tuple[torch.Tensor, ...]:
        normed, summed = add_norms(*tensors, weights[:2], weights[2:], kind="layer")
        return *normed, summed

    def both_eager() -> tuple[torch.Tensor, ...]:
        summed = tensors[0] + tensors[1]
        normed = [F.layer_norm(summed, (width,), w, b) for w, b in zip(weights[:2], weights[2:], strict=True)]
        return *normed, summed

    for name, ours, theirs, count, leaves in (
        ("add + RMSNorm", rms, eager, 8, [*tensors, weights[0]]),
        ("add + two LayerNorms", both, both_eager, 10, [*tensors, *weights]),
    ):
        ways = {"latentpt_kernels": with_gradients(ours, leaves), "eager": with_gradients(theirs, leaves)}
        if not dry:
            ways["torch.compile"] = with_gradients(torch.compile(theirs), leaves)
        yield f"{name}, {rows} rows of {width}", count * rows * width * dtype.itemsize, 0.0, ways


def rotary(device: torch.device, dtype: torch.dtype, dry: bool) -> Iterator[Case]:
    """Rotary of q and k, forward: every number read and written."""
    batch, n, heads, size = (1, 16, 2, 16) if dry else (8, 4096, 16, 64)
    q, k = (torch.randn(batch, n, heads, size, device=device, dtype=dtype).transpose(1, 2) for _ in range(2))
    angles = torch.randn(n // 2, size // 2, device=device)
    cos, sin = angles.cos(), angles.sin()

    def eager() -> object:
        c, s = (part.to(dtype).repeat_interleave(2, 0) for part in (cos, sin))
        half = size // 2
        return [
            torch.cat([x[..., :half] * c - x[..., half:] * s, x[..., half:] * c + x[..., :half] * s], -1)
            for x in (q, k)
        ]

    ways = {"latentpt_kernels": lambda: rotate_qk(q, k, cos, sin), "eager": eager}
    if not dry:
        ways["torch.compile"] = torch.compile(eager)
    yield f"q and k {tuple(q.shape)}", 4.0 * q.numel() * dtype.itemsize, 0.0, ways


def shift(device: torch.device, dtype: torch.dtype, dry: bool) -> Iterator[Case]:
    """The next sweep's input of one thought, forward: tokens and states read, 2 d written."""
    batch, length, width = (1, 16, 32) if dry else (16, 2048, 1024)
    tokens = torch.randn(batch, length, width, device=device, dtype=dtype)
    states = torch.randn(batch, length, 1, width, device=device, dtype=dtype)

    def eager() -> object:
        return torch.cat([tokens[:, :, None], 1.5 * states], 2)

    ways = {"latentpt_kernels": lambda: latent_shift(tokens, states, 1.5), "eager": eager}
    if not dry:
        ways["torch.compile"] = torch.compile(eager)
    yield f"[{batch}, {length}, 2, {width}]", 4.0 * tokens.numel() * dtype.itemsize, 0.0, ways


def decoding(device: torch.device, dtype: torch.dtype, dry: bool) -> Iterator[Case]:
    """Attention over a cache, one linear layer, and a whole token of a Pythia-410M-sized trunk, one thought."""
    heads, size, layers, slots_deep = (2, 16, 1, 64) if dry else (16, 64, 24, 1024)
    width = heads * size
    for batch in (1, 2 if dry else 64):
        k, v = (torch.randn(batch, heads, slots_deep, size, device=device, dtype=dtype) for _ in range(2))
        q = torch.randn(batch, heads, size, device=device, dtype=dtype)
        cells = torch.tensor([slots_deep - 1], dtype=torch.int32, device=device)
        place = Place(cells, 2, (0, 2))
        ways: dict[str, Callable[[], object]] = {
            "latentpt_kernels": lambda q=q, k=k, v=v, place=place: decode_attention(q, k, v, place),
            "eager": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q[:, :, None], k, v),
        }
        yield f"attention over {slots_deep} cells, batch {batch}", 2.0 * k.numel() * dtype.itemsize, 0.0, ways
        x, w = (
            torch.randn(batch, width, device=device, dtype=dtype),
            torch.randn(4 * width, width, device=device, dtype=dtype),
        )
        scale = torch.ones(width, device=device, dtype=dtype)
        ways = {
            "latentpt_kernels": lambda x=x, w=w, s=scale: decode_linear(
                x, w, norm=Norm(s, None, 1e-5, "rms")
            ),
            "eager": lambda x=x, w=w, s=scale: F.linear(F.rms_norm(x, s.shape, s, 1e-5), w),
        }
        yield f"norm + [{4 * width}, {width}], batch {batch}", float(w.numel() * dtype.itemsize), 0.0, ways
    yield token(device, dtype, layers, heads, size, slots_deep)


def token(device: torch.device, dtype: torch.dtype, layers: int, heads: int, size: int, deep: int) -> Case:
    """Two dependent slots through a GPT-NeoX trunk and the head, as one graph and as an uncaptured loop."""
    from latentpt_kernels.graph import Captured

    width, vocabulary = heads * size, 64 * heads * size if layers == 1 else 50304

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype) / columns**0.5

    ones, zeros = (
        torch.ones(width, device=device, dtype=dtype),
        torch.zeros(width, device=device, dtype=dtype),
    )
    norm = Norm(ones, zeros, 1e-5, "layer")
    stack = [
        Layer(norm, matrix(3 * width, width), None, matrix(width, width), None, norm, matrix(4 * width, width), None,
              matrix(width, 4 * width), None, "gelu", True) for _ in range(layers)
    ]  # fmt: skip
    head = matrix(vocabulary, width)
    cache = [
        tuple(torch.randn(1, heads, deep, size, device=device, dtype=dtype) for _ in range(2)) for _ in stack
    ]
    cells = torch.full((1,), deep - 3, dtype=torch.int32, device=device)
    angles = torch.randn(1, size // 8, device=device)
    cos, sin = angles.cos(), angles.sin()
    x0 = torch.randn(1, width, device=device, dtype=dtype)

    def step() -> torch.Tensor:
        x = x0
        for slot in range(2):
            place = Place(cells, 2, (0, 2))
            for layer, (k, v) in zip(stack, cache, strict=True):
                x = decode_layer(x, layer, k, v, place, cos, sin)
            cells.add_(1 if slot == 0 else -1)
        return decode_linear(x, head, norm=norm).argmax(-1)

    weights = sum(t.numel() for layer in stack for t in layer if isinstance(t, torch.Tensor))
    keys = sum(t.numel() for pair in cache for t in pair)
    moved = (2 * (weights + keys) + head.numel()) * dtype.itemsize
    ways = {"one graph": Captured(step, device, warmups=1), "uncaptured": step}
    return f"a token, {layers} layers of {width}, 1 thought, {deep} cells", float(moved), 0.0, ways


CASES = {
    "block_attention": attention,
    "linear_cross_entropy": loss,
    "add_norm": norm,
    "rotate_qk": rotary,
    "latent_shift": shift,
    "decode": decoding,
}
