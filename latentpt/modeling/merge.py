"""Attention over several blocks of keys, merged by their log-sum-exp.

A set of cells that runs in parallel may have to see keys that do not sit in one causal sequence: its own, those of
the slots before it, last sweep's keys of the slots after it, a prefix from a cache. Each of these is a block in
which query row i sees a simple range of key rows:

    CAUSAL   j <= i     own keys, and fresh keys of earlier slots
    STRICT   j <  i     keys of later slots, known from the sweep before
    ALL      every j    a prefix

Softmax over the union of blocks needs no mask and no concatenation: with out_b and lse_b of every block

    lse = log sum_b exp(lse_b),      out = sum_b exp(lse_b - lse) out_b,

and the backward of each block is the ordinary flash backward given the *merged* out and lse (the identity behind
ring attention, Liu et al. 2023, arXiv 2310.01889). Nothing quadratic is kept, and grouped keys are not repeated. That is
what runs on a CPU; other devices have `latentpt_kernels.block_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from latentpt_kernels import block_attention, dispatch
from torch import Tensor


class Relation(Enum):
    """Which key rows j of a block the query row i sees."""

    CAUSAL = "j <= i"
    STRICT = "j < i"
    ALL = "every j"


class KeyBlock(NamedTuple):
    """Keys and values [B, H_kv, n, D] and how queries see them.

    `mask` (bool, broadcastable to [B, 1, n_q, n], True = visible) narrows the relation further, for documents and
    slots that were not thought; it costs the explicit mask that blocks without one never build.
    """

    k: Tensor
    v: Tensor
    relation: Relation
    mask: Tensor | None = None


def attend_blocks(q: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """Attention of q [B, H, n_q, D] over the union of the blocks' visible keys; returns [B, H, n_q, D].

    The first block must show every query at least one key.
    """
    if any(block.mask is not None for block in blocks):
        return attend_dense(q, blocks)
    if len(blocks) == 1 and blocks[0].relation is Relation.ALL:
        k, v, *_ = blocks[0]
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    if dispatch.wanted(q):
        return block_attention(q, [(block.k, block.v, block.relation.name.lower()) for block in blocks])[0]
    flat = [tensor for block in blocks for tensor in (block.k, block.v)]
    return _MergedAttention.apply(q, tuple(block.relation for block in blocks), *flat)


def attend_dense(q: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """The same attention through one explicit mask [.., n_q, sum n]: for masked blocks, and the reference in tests."""
    k = torch.cat([_expand(block.k, q) for block in blocks], dim=2)
    v = torch.cat([_expand(block.v, q) for block in blocks], dim=2)
    mask = torch.cat([_dense_mask(q, block) for block in blocks], dim=-1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _dense_mask(q: Tensor, block: KeyBlock) -> Tensor:
    """Visibility of one block as bool [B or 1, 1, n_q, n]."""
    rows = torch.arange(q.shape[2], device=q.device)[:, None]
    columns = torch.arange(block.k.shape[2], device=q.device)[None, :]
    seen = {
        Relation.CAUSAL: columns <= rows,
        Relation.STRICT: columns < rows,
        Relation.ALL: torch.ones_like(columns <= rows),
    }[block.relation][None, None]
    if block.mask is not None:
        seen = seen & block.mask
    return seen.expand(q.shape[0], -1, -1, -1)


def _expand(kv: Tensor, q: Tensor) -> Tensor:
    """Repeat grouped heads [B, H_kv, n, D] -> [B, H, n, D] (autograd sums the group's gradients)."""
    groups = q.shape[1] // kv.shape[1]
    return kv if groups == 1 else kv.repeat_interleave(groups, dim=1)


def _narrow(q: Tensor, k: Tensor, v: Tensor, relation: Relation) -> tuple[slice, Tensor, Tensor, bool]:
    """The query rows a block concerns, its keys and values cut to match, and whether the flash call is causal."""
    n = q.shape[2]
    if relation is Relation.ALL:
        return slice(None), k, v, False
    if relation is Relation.CAUSAL:
        return slice(None), k[:, :, :n], v[:, :, :n], True
    return slice(1, None), k[:, :, : n - 1], v[:, :, : n - 1], True  # row i sees keys 0..i-1: shift by one


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, relations: tuple[Relation, ...], *kv: Tensor) -> Tensor:
        accumulate = torch.promote_types(q.dtype, torch.float32)
        out: Tensor | None = None
        lse = torch.empty(0)
        for relation, k, v in zip(relations, kv[::2], kv[1::2], strict=True):
            rows, k, v, causal = _narrow(q, k, v, relation)
            if k.shape[2] == 0:
                continue
            part, part_lse = _forward_block(q[:, :, rows], k, v, causal)
            if out is None:
                out, lse = part.to(accumulate), part_lse.to(accumulate)
                continue
            merged = torch.logaddexp(lse[:, :, rows], part_lse)
            keep = (lse[:, :, rows] - merged).exp_().unsqueeze(-1)
            add = (part_lse - merged).exp_().unsqueeze(-1)
            out[:, :, rows] = out[:, :, rows] * keep + part * add
            lse[:, :, rows] = merged
        assert out is not None, "the first block must show every query a key"
        result = out.to(q.dtype)
        ctx.relations = relations
        ctx.save_for_backward(q, result, lse, *kv)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, out, lse, *kv = ctx.saved_tensors
        grad_q: Tensor | None = None
        grads: list[Tensor] = []
        for relation, k, v in zip(ctx.relations, kv[::2], kv[1::2], strict=True):
            rows, k_seen, v_seen, causal = _narrow(q, k, v, relation)
            n = k_seen.shape[2]
            if n == 0:
                grads += [torch.zeros_like(k), torch.zeros_like(v)]
                continue
            dq, dk, dv = _backward_block(
                grad[:, :, rows], q[:, :, rows], k_seen, v_seen, out[:, :, rows], lse[:, :, rows], causal
            )
            if grad_q is None:  # the first block concerns every row
                grad_q = dq.to(torch.promote_types(q.dtype, torch.float32))
            else:
                grad_q[:, :, rows] += dq
            unseen = (0, 0, 0, k.shape[2] - n)
            grads += [dk, dv] if n == k.shape[2] else [F.pad(dk, unseen), F.pad(dv, unseen)]
        assert grad_q is not None
        return grad_q.to(q.dtype), None, *grads


ATEN = torch.ops.aten  # overloads are named, for later versions of torch add others


def _forward_block(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """One block: out [B, H, n_q, D] and natural-log lse [B, H, n_q] of the scores q k / sqrt(D)."""
    return ATEN._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal)


def _backward_block(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block for q, k, v, given the out and lse merged over all blocks."""
    backward = ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default
    return backward(grad, q, k, v, out, lse, 0.0, causal)
