"""Triton kernels of attention over key blocks: forward, and a backward without atomics.

Letters: B rows, H query heads, H_kv key heads, n queries, m keys of a block, D head size. A program of the forward and
of dQ owns BM queries of one head and walks over the keys of all blocks; a program of dK/dV owns BN keys of one key
head of one block and walks over the queries that see them, of every head of its group. Tiles that a relation hides
are not visited; only those it cuts are masked. Heads are padded to BD, the next power of two.

The forward is flash attention's online softmax (Dao 2023, arXiv 2307.08691), carried from block to block; with the lse
over all blocks saved, the backward of each block is the ordinary one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from latentpt_kernels.on_triton.target import INTERPRETER, Target, precision, target_of

ALL, CAUSAL, STRICT = 0, 1, 2
"""Relations as the kernels know them: query i sees every key, keys below i + 1, keys below i."""


@triton.jit
def _load_rows(
    base, first, stride, limit, COUNT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, CHECKED: tl.constexpr
):
    """A tile [COUNT, BD] of the rows from `first` on; rows from `limit` on, and values from D on, are 0.

    The address of a tile is a 64-bit number, places in it are 32-bit ones: a tile of 64-bit addresses fills registers.
    """
    row, d = tl.arange(0, COUNT), tl.arange(0, BD)
    at = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + d[None, :])
    if CHECKED:
        tile = tl.load(at, mask=(row[:, None] < limit - first) & (d[None, :] < D), other=0.0)
    elif BD != D:
        tile = tl.load(at, mask=(row[:, None] >= 0) & (d[None, :] < D), other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def _store_rows(base, first, stride, limit, tile, COUNT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    row, d = tl.arange(0, COUNT), tl.arange(0, BD)
    at = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + d[None, :])
    tl.store(at, tile.to(base.dtype.element_ty), mask=(row[:, None] < limit - first) & (d[None, :] < D))


@triton.jit
def _visible(i, j, m, RELATION: tl.constexpr):
    """Whether queries i see keys j < m, broadcast."""
    seen = (j < m) & (i >= 0)
    if RELATION != 0:
        seen = seen & (j < i + 2 - RELATION)
    return seen


@triton.jit
def _whole(first, m, BN: tl.constexpr, RELATION: tl.constexpr):
    """How many of m keys, in whole tiles, every query from `first` on sees."""
    count = m
    if RELATION != 0:
        count = tl.minimum(m, tl.maximum(first + 2 - RELATION, 0))
    return count // BN * BN


@triton.jit
def _reach(first, m, BM: tl.constexpr, RELATION: tl.constexpr):
    """How many of m keys the last of BM queries from `first` on sees."""
    count = m
    if RELATION != 0:
        count = tl.minimum(m, first + BM + 1 - RELATION)
    return count


@triton.jit
def _absorb_tile(
    acc, top, total, q, k, v, start, rows, m, k_stride, v_stride, q_document, document, scale2,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, RELATION: tl.constexpr, CUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    keys = start + tl.arange(0, BN)
    b_k = _load_rows(k, start, k_stride, m, BN, D, BD, CUT)  # [BN, BD]
    scores = tl.dot(q, tl.trans(b_k), input_precision=PRECISION) * scale2  # [BM, BN], in powers of 2
    if CUT:
        scores = tl.where(_visible(rows[:, None], keys[None, :], m, RELATION), scores, float("-inf"))
    if DOCUMENTS:
        scores = tl.where(q_document[:, None] == document[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen no key yet
    p = tl.exp2(scores - base[:, None])
    keep = tl.exp2(top - base)
    b_v = _load_rows(v, start, v_stride, m, BN, D, BD, CUT)
    acc = acc * keep[:, None] + tl.dot(p.to(b_v.dtype), b_v, input_precision=PRECISION)
    return acc, new_top, total * keep + tl.sum(p, 1)


@triton.jit
def _near(a, b):
    """Whether two tiles can share a document: tiles whose numbers do not overlap are skipped whole."""
    return (tl.max(a, 0) >= tl.min(b, 0)) & (tl.min(a, 0) <= tl.max(b, 0))


@triton.jit
def _absorb(
    acc, top, total, q, k, v, start, rows, m, k_stride, v_stride, q_document, k_documents, scale2,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, RELATION: tl.constexpr, CUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running softmax of a tile of queries."""
    document = start + tl.arange(0, BN)
    if DOCUMENTS:
        document = tl.load(k_documents + document, mask=document < m, other=-1)
        if _near(q_document, document):
            acc, top, total = _absorb_tile(
                acc, top, total, q, k, v, start, rows, m, k_stride, v_stride, q_document, document, scale2,
                D, BD, BN, RELATION, CUT, DOCUMENTS, PRECISION,
            )  # fmt: skip
    else:
        acc, top, total = _absorb_tile(
            acc, top, total, q, k, v, start, rows, m, k_stride, v_stride, q_document, document, scale2,
            D, BD, BN, RELATION, CUT, DOCUMENTS, PRECISION,
        )  # fmt: skip
    return acc, top, total


@triton.jit
def block_attention_fwd_kernel(
    q, ks, vs, out, lse, q_documents, ks_documents, q_strides, k_strides, v_strides, out_strides, ms, n, heads, group,
    scale2, RELATIONS: tl.constexpr, DOCUMENTS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BM
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    rows = first + tl.arange(0, BM)
    b_q = _load_rows(q + b * q_strides[0] + h * q_strides[1], first, q_strides[2], n, BM, D, BD, True)
    acc = tl.zeros([BM, BD], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    document = rows
    if DOCUMENTS:
        document = tl.load(q_documents + b * n + rows, mask=rows < n, other=-2)
    for i in tl.static_range(len(ks)):
        k = ks[i] + b * k_strides[i][0] + h // group * k_strides[i][1]
        v = vs[i] + b * v_strides[i][0] + h // group * v_strides[i][1]
        documents = ks_documents[i] + b * ms[i]
        whole = _whole(first, ms[i], BN, RELATIONS[i])
        for start in range(0, whole, BN):
            acc, top, total = _absorb(
                acc, top, total, b_q, k, v, start, rows, ms[i], k_strides[i][2], v_strides[i][2], document, documents,
                scale2, D, BD, BN, RELATIONS[i], False, DOCUMENTS, PRECISION,
            )  # fmt: skip
        for start in range(whole, _reach(first, ms[i], BM, RELATIONS[i]), BN):
            acc, top, total = _absorb(
                acc, top, total, b_q, k, v, start, rows, ms[i], k_strides[i][2], v_strides[i][2], document, documents,
                scale2, D, BD, BN, RELATIONS[i], True, DOCUMENTS, PRECISION,
            )  # fmt: skip
    b_out = acc / tl.where(total > 0, total, 1.0)[:, None]
    _store_rows(out + b * out_strides[0] + h * out_strides[1], first, out_strides[2], n, b_out, BM, D, BD)
    b_lse = tl.where(total > 0, (top + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    tl.store(lse + (b * heads + h) * n + rows, b_lse, mask=rows < n)


@triton.jit
def block_attention_delta_kernel(
    out, grad, delta, out_strides, grad_strides, n, heads,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta = sum over D of out * grad, [B, H, n]: what the softmax takes back from every row."""
    first = tl.program_id(0) * BM
    rows = first + tl.arange(0, BM)
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    b_out = _load_rows(
        out + b * out_strides[0] + h * out_strides[1], first, out_strides[2], n, BM, D, BD, True
    )
    b_grad = _load_rows(
        grad + b * grad_strides[0] + h * grad_strides[1], first, grad_strides[2], n, BM, D, BD, True
    )
    total = tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), 1)
    tl.store(delta + (b * heads + h) * n + rows, total, mask=rows < n)


@triton.jit
def _load_lse2(lse, rows, n):
    """lse in powers of 2; +inf, which makes every probability 0, for rows without keys and beyond the end."""
    value = tl.load(lse + rows, mask=rows < n, other=float("inf"))
    return tl.where(value == float("-inf"), float("inf"), value * 1.4426950408889634)


@triton.jit
def _gather_keys_tile(
    grad_k, grad_v, b_k, b_v, q, grad, lse, delta, start, keys, n, m, q_stride, grad_stride, row_document, document,
    scale2, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, RELATION: tl.constexpr, CUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = start + tl.arange(0, BM)
    b_q = _load_rows(q, start, q_stride, n, BM, D, BD, True)
    b_grad = _load_rows(grad, start, grad_stride, n, BM, D, BD, True)
    b_lse = _load_lse2(lse, rows, n)
    b_delta = tl.load(delta + rows, mask=rows < n, other=0.0)
    scores = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * scale2  # [BN, BM]
    p = tl.exp2(scores - b_lse[None, :])
    if CUT:
        p = tl.where(_visible(rows[None, :], keys[:, None], m, RELATION), p, 0.0)
    if DOCUMENTS:
        p = tl.where(row_document[None, :] == document[:, None], p, 0.0)
    grad_v += tl.dot(p.to(b_grad.dtype), b_grad, input_precision=PRECISION)
    grad_p = tl.dot(b_v, tl.trans(b_grad), input_precision=PRECISION)
    grad_scores = p * (grad_p - b_delta[None, :])
    grad_k += tl.dot(grad_scores.to(b_q.dtype), b_q, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit
def _gather_keys(
    grad_k, grad_v, b_k, b_v, q, grad, lse, delta, start, keys, n, m, q_stride, grad_stride, q_documents, document,
    scale2, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, RELATION: tl.constexpr, CUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one tile of queries adds to the gradients of a tile of keys and values."""
    row_document = start + tl.arange(0, BM)
    if DOCUMENTS:
        row_document = tl.load(q_documents + row_document, mask=row_document < n, other=-2)
        if _near(row_document, document):
            grad_k, grad_v = _gather_keys_tile(
                grad_k, grad_v, b_k, b_v, q, grad, lse, delta, start, keys, n, m, q_stride, grad_stride, row_document,
                document, scale2, D, BD, BM, RELATION, CUT, DOCUMENTS, PRECISION,
            )  # fmt: skip
    else:
        grad_k, grad_v = _gather_keys_tile(
            grad_k, grad_v, b_k, b_v, q, grad, lse, delta, start, keys, n, m, q_stride, grad_stride, row_document,
            document, scale2, D, BD, BM, RELATION, CUT, DOCUMENTS, PRECISION,
        )  # fmt: skip
    return grad_k, grad_v


@triton.jit
def block_attention_bwd_kv_kernel(
    q, k, v, grad, lse, delta, grad_k, grad_v, q_documents, k_documents, q_strides, k_strides, v_strides, grad_strides,
    out_strides, n, m, heads, group, scale, scale2, RELATION: tl.constexpr, DOCUMENTS: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BN
    kv_heads = heads // group
    b, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), (tl.program_id(1) % kv_heads).to(tl.int64)
    keys = first + tl.arange(0, BN)
    b_k = _load_rows(k + b * k_strides[0] + kv_head * k_strides[1], first, k_strides[2], m, BN, D, BD, True)
    b_v = _load_rows(v + b * v_strides[0] + kv_head * v_strides[1], first, v_strides[2], m, BN, D, BD, True)
    acc_k, acc_v = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
    document = keys
    if DOCUMENTS:
        document = tl.load(k_documents + b * m + keys, mask=keys < m, other=-1)
    begin, cut = (
        first * 0,
        first * 0,
    )  # the first query that sees a key of the tile, the first that sees all of them
    if RELATION != 0:
        begin = tl.maximum(first + RELATION - 1, 0) // BM * BM
        cut = tl.minimum((first + BN + RELATION - 2 + BM - 1) // BM * BM, (n + BM - 1) // BM * BM)
    for head in range(kv_head * group, (kv_head + 1) * group):
        p_q, p_grad = (
            q + b * q_strides[0] + head * q_strides[1],
            grad + b * grad_strides[0] + head * grad_strides[1],
        )
        p_lse, p_delta = lse + (b * heads + head) * n, delta + (b * heads + head) * n
        for start in range(begin, cut, BM):
            acc_k, acc_v = _gather_keys(
                acc_k, acc_v, b_k, b_v, p_q, p_grad, p_lse, p_delta, start, keys, n, m, q_strides[2], grad_strides[2],
                q_documents + b * n, document, scale2, D, BD, BM, RELATION, True, DOCUMENTS, PRECISION,
            )  # fmt: skip
        for start in range(tl.maximum(begin, cut), n, BM):
            acc_k, acc_v = _gather_keys(
                acc_k, acc_v, b_k, b_v, p_q, p_grad, p_lse, p_delta, start, keys, n, m, q_strides[2], grad_strides[2],
                q_documents + b * n, document, scale2, D, BD, BM, RELATION, False, DOCUMENTS, PRECISION,
            )  # fmt: skip
    at = b * out_strides[0] + kv_head * out_strides[1]
    _store_rows(grad_k + at, first, out_strides[2], m, acc_k * scale, BN, D, BD)
    _store_rows(grad_v + at, first, out_strides[2], m, acc_v, BN, D, BD)


@triton.jit
def _gather_queries_tile(
    acc, b_q, b_grad, b_lse, b_delta, k, v, start, rows, m, k_stride, v_stride, q_document, document, scale2,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, RELATION: tl.constexpr, CUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    keys = start + tl.arange(0, BN)
    b_k = _load_rows(k, start, k_stride, m, BN, D, BD, CUT)
    b_v = _load_rows(v, start, v_stride, m, BN, D, BD, CUT)
    p = tl.exp2(tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale2 - b_lse[:, None])
    if CUT:
        p = tl.where(_visible(rows[:, None], keys[None, :], m, RELATION), p, 0.0)
    if DOCUMENTS:
        p = tl.where(q_document[:, None] == document[None, :], p, 0.0)
    grad_p = tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION)
    grad_scores = p * (grad_p - b_delta[:, None])
    return acc + tl.dot(grad_scores.to(b_k.dtype), b_k, input_precision=PRECISION)


@triton.jit
def _gather_queries(
    acc, b_q, b_grad, b_lse, b_delta, k, v, start, rows, m, k_stride, v_stride, q_document, k_documents, scale2,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, RELATION: tl.constexpr, CUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one tile of keys adds to the gradient of a tile of queries."""
    document = start + tl.arange(0, BN)
    if DOCUMENTS:
        document = tl.load(k_documents + document, mask=document < m, other=-1)
        if _near(q_document, document):
            acc = _gather_queries_tile(
                acc, b_q, b_grad, b_lse, b_delta, k, v, start, rows, m, k_stride, v_stride, q_document, document, scale2,
                D, BD, BN, RELATION, CUT, DOCUMENTS, PRECISION,
            )  # fmt: skip
    else:
        acc = _gather_queries_tile(
            acc, b_q, b_grad, b_lse, b_delta, k, v, start, rows, m, k_stride, v_stride, q_document, document, scale2,
            D, BD, BN, RELATION, CUT, DOCUMENTS, PRECISION,
        )  # fmt: skip
    return acc


@triton.jit
def block_attention_bwd_q_kernel(
    q, ks, vs, grad, lse, delta, grad_q, q_documents, ks_documents, q_strides, k_strides, v_strides, grad_strides,
    out_strides, ms, n, heads, group, scale, scale2, RELATIONS: tl.constexpr, DOCUMENTS: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BM
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    rows = first + tl.arange(0, BM)
    b_q = _load_rows(q + b * q_strides[0] + h * q_strides[1], first, q_strides[2], n, BM, D, BD, True)
    b_grad = _load_rows(
        grad + b * grad_strides[0] + h * grad_strides[1], first, grad_strides[2], n, BM, D, BD, True
    )
    b_lse = _load_lse2(lse + (b * heads + h) * n, rows, n)
    b_delta = tl.load(delta + (b * heads + h) * n + rows, mask=rows < n, other=0.0)
    acc = tl.zeros([BM, BD], tl.float32)
    document = rows
    if DOCUMENTS:
        document = tl.load(q_documents + b * n + rows, mask=rows < n, other=-2)
    for i in tl.static_range(len(ks)):
        k = ks[i] + b * k_strides[i][0] + h // group * k_strides[i][1]
        v = vs[i] + b * v_strides[i][0] + h // group * v_strides[i][1]
        documents = ks_documents[i] + b * ms[i]
        whole = _whole(first, ms[i], BN, RELATIONS[i])
        for start in range(0, whole, BN):
            acc = _gather_queries(
                acc, b_q, b_grad, b_lse, b_delta, k, v, start, rows, ms[i], k_strides[i][2], v_strides[i][2], document,
                documents, scale2, D, BD, BN, RELATIONS[i], False, DOCUMENTS, PRECISION,
            )  # fmt: skip
        for start in range(whole, _reach(first, ms[i], BM, RELATIONS[i]), BN):
            acc = _gather_queries(
                acc, b_q, b_grad, b_lse, b_delta, k, v, start, rows, ms[i], k_strides[i][2], v_strides[i][2], document,
                documents, scale2, D, BD, BN, RELATIONS[i], True, DOCUMENTS, PRECISION,
            )  # fmt: skip
    _store_rows(
        grad_q + b * out_strides[0] + h * out_strides[1], first, out_strides[2], n, acc * scale, BM, D, BD
    )


def tiles(kernel: str, size: int, itemsize: int, target: Target) -> dict[str, int]:
    """Tile sizes, warps and pipeline stages of a kernel for heads of `size` values of `itemsize` bytes.

    Starting points by what fits: nothing here was tuned on a device (docs/kernels.md says what a run would settle).
    """
    bd = max(16, triton.next_power_of_2(size))
    narrow = itemsize == 2
    if not narrow:
        bm = bn = 32 if bd <= 128 else 16
    elif kernel == "fwd":
        bm, bn = (128, 64) if bd <= 128 else (64, 32)
    else:
        bm = bn = 64 if bd <= 128 else 32
    if target is INTERPRETER:
        bm = bn = 64
    if target.hip:
        bm, bn = min(bm, 64), min(bn, 64 if bd <= 64 else 32)
    if kernel == "bwd_kv":
        bm, bn = bn, bm  # here keys are owned and queries walked over
    warps = 8 if bd >= 128 or (kernel == "bwd_kv" and bd >= 64 and narrow) else 4
    if target.hip:
        warps = 4
    held = {"fwd": bm, "bwd_kv": 2 * bn, "bwd_q": 2 * bm}[kernel] * bd * itemsize
    walked = {"fwd": 2 * bn, "bwd_kv": 2 * bm, "bwd_q": 2 * bn}[kernel] * bd * itemsize
    stages = max(1, min(3 if target.arch >= 90 else 2, (target.shared - held) // max(walked, 1) - 1))
    return {"BM": bm, "BN": bn, "BD": bd, "num_warps": warps, "num_stages": stages}


def forward(
    q: Tensor, kv: list[Tensor], relations: list[int], scale: float, documents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """out as [B, H, n, D] over memory [B, n, H, D], and the natural-log lse float32 [B, H, n]."""
    (batch, heads, n, size), ks, vs = q.shape, _rows(kv[::2]), _rows(kv[1::2])
    (q,) = _rows([q])
    out = q.new_empty(batch, n, heads, size).transpose(1, 2)
    lse = q.new_empty((batch, heads, n), dtype=torch.float32)
    if not n:
        return out, lse
    choice = tiles("fwd", size, q.element_size(), target_of(q))
    q_documents, k_documents = _documents(q, ks, documents)
    block_attention_fwd_kernel[(triton.cdiv(n, choice["BM"]), batch * heads)](
        q, ks, vs, out, lse, q_documents, k_documents, q.stride()[:3], _strides(ks), _strides(vs), out.stride()[:3],
        tuple(k.shape[2] for k in ks), n, heads, heads // ks[0].shape[1], scale * 1.4426950408889634,
        RELATIONS=tuple(relations), DOCUMENTS=bool(documents), D=size, PRECISION=precision(q), **choice,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor, q: Tensor, kv: list[Tensor], out: Tensor, lse: Tensor, relations: list[int], scale: float,
    documents: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Gradients of q and of every k and v, in that order; sums run in one order, so runs repeat bit for bit."""
    (batch, heads, n, size), ks, vs = q.shape, _rows(kv[::2]), _rows(kv[1::2])
    q, grad, out = _rows([q, grad, out])
    target, group = target_of(q), heads // ks[0].shape[1]
    common = {"DOCUMENTS": bool(documents), "D": size, "PRECISION": precision(q)}
    q_documents, k_documents = _documents(q, ks, documents)
    lse, delta = lse.contiguous(), torch.empty_like(lse, memory_format=torch.contiguous_format)
    choice = tiles("bwd_q", size, q.element_size(), target)
    grid = (triton.cdiv(n, choice["BM"]), batch * heads)
    grad_q = q.new_empty(batch, n, heads, size).transpose(1, 2)
    if not n:
        return [grad_q, *(torch.zeros_like(t) for t in kv)]
    block_attention_delta_kernel[grid](
        out,
        grad,
        delta,
        out.stride()[:3],
        grad.stride()[:3],
        n,
        heads,
        D=size,
        BD=choice["BD"],
        BM=choice["BM"],
    )
    scale2 = scale * 1.4426950408889634
    block_attention_bwd_q_kernel[grid](
        q, ks, vs, grad, lse, delta, grad_q, q_documents, k_documents, q.stride()[:3], _strides(ks), _strides(vs),
        grad.stride()[:3], grad_q.stride()[:3], tuple(k.shape[2] for k in ks), n, heads, group, scale, scale2,
        RELATIONS=tuple(relations), **common, **choice,
    )  # fmt: skip
    grads = [grad_q]
    choice = tiles("bwd_kv", size, q.element_size(), target)
    for k, v, relation, document in zip(ks, vs, relations, k_documents, strict=True):
        m, kv_heads = k.shape[2], k.shape[1]
        grad_k, grad_v = (k.new_empty(batch, m, kv_heads, size).transpose(1, 2) for _ in range(2))
        if m:
            block_attention_bwd_kv_kernel[(triton.cdiv(m, choice["BN"]), batch * kv_heads)](
                q, k, v, grad, lse, delta, grad_k, grad_v, q_documents, document, q.stride()[:3], k.stride()[:3],
                v.stride()[:3], grad.stride()[:3], grad_k.stride()[:3], n, m, heads, group, scale, scale2,
                RELATION=relation, **common, **choice,
            )  # fmt: skip
        grads += [grad_k, grad_v]
    return grads


def _rows(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with values of a head side by side; every other stride is free."""
    return tuple(t if t.stride(-1) == 1 else t.contiguous() for t in tensors)


def _strides(tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(t.stride()[:3] for t in tensors)


def _documents(
    q: Tensor, ks: tuple[Tensor, ...], documents: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Document numbers int32 of queries [B, n] and of every block's keys [B, m]; any pointer where there are none."""
    if not documents:
        return q, ks
    first, *rest = (numbers.to(torch.int32).contiguous() for numbers in documents)
    return first, tuple(rest)
