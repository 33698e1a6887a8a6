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
ring attention, Liu et al. 2023, arXiv 2310.01889). Nothing quadratic is kept. `latentpt_kernels.block_attention` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

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
    """Keys and values [B, H_kv, n, D] and how queries see them."""

    k: Tensor
    v: Tensor
    relation: Relation
    mask: Tensor | None = None
    """bool, broadcastable to [B, 1, n_q, n], True = visible: narrows the relation further, at the cost of an explicit mask."""
    documents: tuple[Tensor, Tensor] | None = None
    """Document numbers int64 [B, n_q] of the queries and [B, n] of the keys: what lies in another document is hidden."""


def attend_blocks(q: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """Attention of q [B, H, n_q, D] over the union of the blocks' visible keys; returns [B, H, n_q, D].

    The first block must show every query at least one key. Of documents either all blocks know or none.
    """
    if any(block.mask is not None for block in blocks):
        return attend_dense(q, blocks)
    numbers = [block.documents for block in blocks if block.documents is not None]
    if numbers and not dispatch.wanted(q):
        # A CPU has no kernel for numbers, and is faster if it keeps the mask.
        return attend_dense(q, blocks)
    if len(blocks) == 1 and blocks[0].relation is Relation.ALL and not numbers:
        k, v, *_ = blocks[0]
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    triples = [(block.k, block.v, block.relation.name.lower()) for block in blocks]
    documents = [numbers[0][0], *(of_keys for _, of_keys in numbers)] if numbers else None
    return block_attention(q, triples, documents=documents)[0]


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
    if block.documents is not None:
        of_queries, of_keys = block.documents
        seen = seen & (of_queries[:, None, :, None] == of_keys[:, None, None, :])
    return seen.expand(q.shape[0], -1, -1, -1)


def _expand(kv: Tensor, q: Tensor) -> Tensor:
    """Repeat grouped heads [B, H_kv, n, D] -> [B, H, n, D] (autograd sums the group's gradients)."""
    groups = q.shape[1] // kv.shape[1]
    return kv if groups == 1 else kv.repeat_interleave(groups, dim=1)
