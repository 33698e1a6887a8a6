"""Attention of a set of queries over several blocks of keys, each seen causally, strictly or whole."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentpt_kernels import dispatch, merged_attention

RELATIONS = ("all", "causal", "strict")
"""Query i sees every key j of a block; those with j <= i; those with j < i. Kernels know them by their place here."""

Block = tuple[Tensor, Tensor, str]


def block_attention(
    q: Tensor,
    blocks: Sequence[Block],
    scale: float | None = None,
    documents: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One softmax of q over the visible keys of all blocks, without a mask and without joining them.

    q [B, H, n, D], blocks of (k [B, H_kv, m, D], v, relation), H a multiple of H_kv, any strides; scores are
    multiplied by `scale`, 1 / sqrt(D) by default. `documents`, int [B, n] of the queries and [B, m] of every block in
    turn, hide keys of another document. Returns out [B, H, n, D] in the dtype of q and the natural-log lse [B, H, n]
    in float32 (float64 for float64), which carries no gradient. The first block shows every query a key; a row that
    sees none gives 0 and -inf. Raises ValueError for sizes that do not fit.
    """
    _check(q, blocks, documents)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    relations = tuple(relation for _, _, relation in blocks)
    kv = [tensor for k, v, _ in blocks for tensor in (k, v)]
    numbers = list(documents or ())
    if dispatch.mode() == "reference":
        return merged_attention.dense(q, kv, relations, scale, numbers)
    if not dispatch.triton_runs(q):
        return _attend(q, kv, relations, scale, numbers)
    dtype = q.dtype
    q, *kv = dispatch.widen(q, *kv)
    out, lse = _attend(q, kv, relations, scale, numbers)
    return out.to(dtype), lse


def _check(q: Tensor, blocks: Sequence[Block], documents: Sequence[Tensor] | None) -> None:
    if not blocks:
        raise ValueError("block_attention needs at least one block of keys")
    for index, (k, v, relation) in enumerate(blocks):
        if relation not in RELATIONS:
            raise ValueError(f"block {index} has the relation {relation!r}; it may be {', '.join(RELATIONS)}")
        if (
            k.shape != v.shape
            or k.shape[0] != q.shape[0]
            or k.shape[3] != q.shape[3]
            or q.shape[1] % k.shape[1]
        ):
            raise ValueError(
                f"block {index} has keys {tuple(k.shape)} and values {tuple(v.shape)}, which do not fit queries {tuple(q.shape)}"
            )
    if documents is not None and len(documents) != len(blocks) + 1:
        raise ValueError(
            f"{len(documents)} tensors of document numbers for {len(blocks)} blocks; the queries' and one a block are needed"
        )


def _attend(
    q: Tensor, kv: list[Tensor], relations: tuple[str, ...], scale: float, documents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, *kv)):
        return _BlockAttention.apply(q, relations, scale, len(documents), *documents, *kv)
    return _run(q, kv, relations, scale, documents)


def _run(
    q: Tensor, kv: list[Tensor], relations: tuple[str, ...], scale: float, documents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    if _is_leaf(q):
        return torch.ops.latentpt.block_attention(q, kv, _numbers(relations), scale, documents)
    return _forward(q, kv, relations, scale, documents)


def _is_leaf(q: Tensor) -> bool:
    """On CUDA one opaque operation, so that torch.compile sees a leaf; elsewhere the calls themselves, which cost less."""
    return q.is_cuda or dispatch.triton_runs(q)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, relations: tuple[str, ...], scale: float, count: int, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, lse = _run(q, list(rest[count:]), relations, scale, list(rest[:count]))
        ctx.save_for_backward(q, out, lse, *rest)
        ctx.leaf, ctx.relations, ctx.scale, ctx.count = _is_leaf(q), relations, scale, count
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, out, lse, *rest = ctx.saved_tensors
        documents, kv = rest[: ctx.count], rest[ctx.count :]
        if ctx.leaf:
            numbers = _numbers(ctx.relations)
            found = torch.ops.latentpt.block_attention_backward(
                grads[0], q, kv, out, lse, numbers, ctx.scale, documents
            )
        else:
            found = _backward(grads[0], q, kv, out, lse, ctx.relations, ctx.scale, documents)
        return found[0], None, None, None, *(None for _ in documents), *found[1:]


def _numbers(relations: Sequence[str]) -> list[int]:
    return [RELATIONS.index(relation) for relation in relations]


def _forward(
    q: Tensor, kv: list[Tensor], relations: Sequence[str], scale: float, documents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """By torch's kernels."""
    if documents and q.device.type == "cpu":
        return merged_attention.masked_forward(q, kv, relations, scale, documents)
    if documents:
        return merged_attention.dense(q, kv, relations, scale, documents)
    kernel = next(iter(merged_attention.kernels_for(q).values()))
    return merged_attention.forward(kernel, q, kv, relations, scale)


def _backward(
    grad: Tensor, q: Tensor, kv: list[Tensor], out: Tensor, lse: Tensor, relations: Sequence[str], scale: float,
    documents: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """By torch's kernels; with documents by the formula, whose probabilities are made again and not kept."""
    if documents and q.device.type == "cpu":
        return merged_attention.masked_backward(grad, q, kv, out, lse, relations, scale, documents)
    if documents:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (q, *kv)]
            again, _ = merged_attention.dense(leaves[0], leaves[1:], relations, scale, documents)
        return list(torch.autograd.grad(again, leaves, grad))
    kernel = next(iter(merged_attention.kernels_for(q).values()))
    return merged_attention.backward(kernel, grad, q, kv, out, lse, relations, scale)


def _key(q: Tensor, kv: list[Tensor], relations: list[int], documents: list[Tensor]) -> tuple:
    """What the choice between implementations depends on; lengths up to the next power of two."""
    lengths = tuple(dispatch.size_class(t.shape[2]) for t in (q, *kv[::2]))
    return (*q.shape[:2], kv[0].shape[1], q.shape[3], lengths, tuple(relations), bool(documents))


def _heads_inside(*tensors: Tensor) -> tuple[Tensor, ...]:
    """[B, H, n, D] over memory [B, n, H, D], what every implementation of a leaf answers with; lse [B, H, n] as it lies."""
    return tuple(
        t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() == 4 else t.contiguous() for t in tensors
    )


@torch.library.custom_op("latentpt::block_attention", mutates_args=())
def _forward_leaf(
    q: Tensor, kv: list[Tensor], relations: list[int], scale: float, documents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    words = [RELATIONS[relation] for relation in relations]

    def by_triton() -> tuple[Tensor, Tensor]:
        from latentpt_kernels.on_triton import block_attention as ours

        return ours.forward(q, kv, relations, scale, documents)

    def by_torch(kernel: type[merged_attention.Kernel]) -> tuple[Tensor, Tensor]:
        return _heads_inside(*merged_attention.forward(kernel, q, kv, words, scale))

    candidates: dict[str, Any] = {"triton": by_triton}
    if documents:
        candidates["dense"] = lambda: _heads_inside(*_forward(q, kv, words, scale, documents))
    else:
        for name, kernel in merged_attention.kernels_for(q).items():
            candidates[name] = functools.partial(by_torch, kernel)
    return dispatch.choose("block_attention", q, candidates, _key(q, kv, relations, documents))


@_forward_leaf.register_fake
def _(q: Tensor, kv: list[Tensor], relations: list[int], scale: float, documents: list[Tensor]) -> Any:
    batch, heads, n, size = q.shape
    out = q.new_empty(batch, n, heads, size).transpose(1, 2)
    return out, q.new_empty((batch, heads, n), dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("latentpt::block_attention_backward", mutates_args=())
def _backward_leaf(
    grad: Tensor, q: Tensor, kv: list[Tensor], out: Tensor, lse: Tensor, relations: list[int], scale: float,
    documents: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    words = [RELATIONS[relation] for relation in relations]

    def by_triton() -> list[Tensor]:
        from latentpt_kernels.on_triton import block_attention as ours

        return ours.backward(grad, q, kv, out, lse, relations, scale, documents)

    def by_torch(kernel: type[merged_attention.Kernel]) -> list[Tensor]:
        grads = merged_attention.backward(kernel, grad, q, kv, out, lse, words, scale)
        return list(_heads_inside(*grads))

    candidates: dict[str, Any] = {"triton": by_triton}
    if documents:
        candidates["dense"] = lambda: list(
            _heads_inside(*_backward(grad, q, kv, out, lse, words, scale, documents))
        )
    else:
        for name, kernel in merged_attention.kernels_for(q).items():
            candidates[name] = functools.partial(by_torch, kernel)
    return dispatch.choose("block_attention_backward", q, candidates, _key(q, kv, relations, documents))


@_backward_leaf.register_fake
def _(
    grad: Tensor, q: Tensor, kv: list[Tensor], out: Tensor, lse: Tensor, relations: list[int], scale: float,
    documents: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape[0], t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in (q, *kv)]
