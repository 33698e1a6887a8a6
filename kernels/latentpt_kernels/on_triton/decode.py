"""Triton kernels of decoding: one new cell a row, so every weight and every cached key is read once and that is the time.

B rows (1 to 64), H query heads in groups that share one of H_kv key heads, D head size, C cells of cache. Where the new
cell lies is read from the device (`cells`), so a captured graph serves every position.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from latentpt_kernels.on_triton.target import INTERPRETER, target_of

NORMS = (None, "rms", "layer")
ACTIVATIONS = (None, "gelu", "gelu_tanh", "swiglu")
FEW = 4
"""Rows multiplied value by value; more go through tl.dot, padded to 16."""


@triton.jit
def decode_attention_split_kernel(
    q, k, v, cells, parts, lses, q_strides, k_strides, v_strides, cell_stride, group, scale2, S, low, high,
    D: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One key head's queries over one part of the cells they see: those of slots low <= s < high, up to their own.

    The j-th such cell is (j // width) S + low + j % width with width = high - low; parts [B, H, SPLITS, D] float32.
    """
    kv_head, b, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    filled = tl.load(cells + b * cell_stride) + 1
    width = high - low
    count = filled // S * width + tl.minimum(tl.maximum(filled % S - low, 0), width)
    share = tl.cdiv(tl.cdiv(count, SPLITS), BN) * BN
    begin = split * share
    end = tl.minimum(count, begin + share)
    g, d = tl.arange(0, BG), tl.arange(0, BD)
    mine = (g[:, None] < group) & (d[None, :] < D)
    b_q = tl.load(
        q + b * q_strides[0] + (kv_head * group + g[:, None]) * q_strides[1] + d[None, :],
        mask=mine,
        other=0.0,
    )
    b_q = b_q.to(k.dtype.element_ty)
    k += b * k_strides[0] + kv_head * k_strides[1]
    v += b * v_strides[0] + kv_head * v_strides[1]
    acc = tl.zeros([BG, BD], tl.float32)
    top, total = tl.full([BG], float("-inf"), tl.float32), tl.zeros([BG], tl.float32)
    for start in range(begin, end, BN):
        j = start + tl.arange(0, BN)
        cell = (j // width * S + low + j % width).to(tl.int64)
        inside = (j[:, None] < end) & (d[None, :] < D)
        b_k = tl.load(k + cell[:, None] * k_strides[2] + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale2
        scores = tl.where((j[None, :] < end) & (g[:, None] >= 0), scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p, keep = tl.exp2(scores - new_top[:, None]), tl.exp2(top - new_top)
        b_v = tl.load(v + cell[:, None] * v_strides[2] + d[None, :], mask=inside, other=0.0)
        acc = acc * keep[:, None] + tl.dot(p.to(b_v.dtype), b_v, input_precision="ieee")
        top, total = new_top, total * keep + tl.sum(p, 1)
    head = (b * tl.num_programs(0) + kv_head) * group + g
    lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(lses + head * SPLITS + split, lse, mask=g < group)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(parts + (head[:, None] * SPLITS + split) * D + d[None, :], acc, mask=mine)


@triton.jit
def decode_attention_join_kernel(parts, lses, out, D: tl.constexpr, BD: tl.constexpr, SPLITS: tl.constexpr):
    """out [B, H, D]: the parts, each with its share of the softmax."""
    head = tl.program_id(0).to(tl.int64)
    split, d = tl.arange(0, SPLITS), tl.arange(0, BD)
    lse = tl.load(lses + head * SPLITS + split)
    weight = tl.exp2(lse - tl.max(lse, 0))
    inside = (split[:, None] >= 0) & (d[None, :] < D)
    part = tl.load(parts + (head * SPLITS + split[:, None]) * D + d[None, :], mask=inside, other=0.0)
    joined = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + head * D + d, joined.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _statistics(x, rows, B, d_in, eps, NORM: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr):
    """Mean (0 for rms) and 1 / std of BM rows of x [B, d_in], each read whole: a few KB out of the cache."""
    i = tl.arange(0, BI)
    mean, square = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    if NORM == 2:
        for start in range(0, d_in, BI):
            inside = (rows[:, None] < B) & (start + i[None, :] < d_in)
            mean += tl.sum(
                tl.load(x + rows[:, None] * d_in + start + i[None, :], mask=inside, other=0.0).to(tl.float32),
                1,
            )
        mean = mean / d_in
    for start in range(0, d_in, BI):
        inside = (rows[:, None] < B) & (start + i[None, :] < d_in)
        value = tl.load(x + rows[:, None] * d_in + start + i[None, :], mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - mean[:, None], 0.0)
        square += tl.sum(value * value, 1)
    return mean, 1 / tl.sqrt(square / d_in + eps)


@triton.jit
def _load_normed(
    x,
    norm_weight,
    norm_bias,
    rows,
    start,
    B,
    d_in,
    mean,
    rstd,
    NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    BI: tl.constexpr,
):
    """Columns start .. start + BI of the normed rows, float32 [BM, BI]."""
    i = start + tl.arange(0, BI)
    inside = (rows[:, None] < B) & (i[None, :] < d_in)
    value = tl.load(x + rows[:, None] * d_in + i[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM != 0:
        value = (value - mean[:, None]) * rstd[:, None]
        value = value * tl.load(norm_weight + i, mask=i < d_in, other=0.0).to(tl.float32)[None, :]
        if NORM_BIAS:
            value += tl.load(norm_bias + i, mask=i < d_in, other=0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def _times(acc, x, weight, out_rows, valid, start, d_in, BI: tl.constexpr, DOT: tl.constexpr):
    """acc [BM, BO] += x W^T over BI columns of the rows `out_rows` of weight [.., d_in]."""
    i = start + tl.arange(0, BI)
    inside = valid[:, None] & (i[None, :] < d_in)
    w = tl.load(weight + out_rows[:, None].to(tl.int64) * d_in + i[None, :], mask=inside, other=0.0)
    if DOT:
        acc += tl.dot(x.to(w.dtype), tl.trans(w), input_precision="ieee")
    else:
        acc += tl.sum(x.to(w.dtype).to(tl.float32)[:, None, :] * w.to(tl.float32)[None, :, :], 2)
    return acc


@triton.jit
def decode_linear_kernel(
    x, norm_weight, norm_bias, weight, bias, residual, out, B, d_in, d_out, eps,
    NORM: tl.constexpr, NORM_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """out [B, d_out] = residual + activation(norm(x) W^T + bias); swiglu reads gate rows o and value rows d_out + o."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    mean, rstd = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    if NORM != 0:
        mean, rstd = _statistics(x, rows, B, d_in, eps, NORM, BM, BI)
    y, value = tl.zeros([BM, BO], tl.float32), tl.zeros([BM, BO], tl.float32)
    for start in range(0, d_in, BI):
        b_x = _load_normed(x, norm_weight, norm_bias, rows, start, B, d_in, mean, rstd, NORM, NORM_BIAS, BI)
        y = _times(y, b_x, weight, o, o < d_out, start, d_in, BI, DOT)
        if ACTIVATION == 3:
            value = _times(value, b_x, weight, d_out + o, o < d_out, start, d_in, BI, DOT)
    if BIAS:
        y += tl.load(bias + o, mask=o < d_out, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION == 3:
            value += tl.load(bias + d_out + o, mask=o < d_out, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    if ACTIVATION == 2:
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))  # (1 + tanh z) / 2 = sigmoid(2 z)
    if ACTIVATION == 3:
        y = y * tl.sigmoid(y) * value
    inside = (rows[:, None] < B) & (o[None, :] < d_out)
    at = rows[:, None].to(tl.int64) * d_out + o[None, :]
    if RESIDUAL:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def decode_qkv_kernel(
    x, norm_weight, norm_bias, weight, bias, cos, sin, cells, q, k, v, k_strides, v_strides, cell_stride, angle_stride, B,
    d_in, heads, kv_heads, eps, NORM: tl.constexpr, NORM_BIAS: tl.constexpr, BIAS: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Queries to q [B, H, D], keys and values to their cell of the cache; a program makes BP pairs of one head's values.

    Pair j < R is (j, R + j), which turns by the row's angle j; of the 2 (D / 2 - R) values that do not turn,
    pair j is (R + j, D / 2 + j), so that every row of the weight is read once.
    """
    head = tl.program_id(0)
    j = tl.program_id(1) * BP + tl.arange(0, BP)
    rows = tl.program_id(2) * BM + tl.arange(0, BM)
    valid = j < D // 2
    a = tl.where(j < R, j, R + j)
    b = tl.where(j < R, R + j, D // 2 + j)
    mean, rstd = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    if NORM != 0:
        mean, rstd = _statistics(x, rows, B, d_in, eps, NORM, BM, BI)
    y_a, y_b = tl.zeros([BM, BP], tl.float32), tl.zeros([BM, BP], tl.float32)
    for start in range(0, d_in, BI):
        b_x = _load_normed(x, norm_weight, norm_bias, rows, start, B, d_in, mean, rstd, NORM, NORM_BIAS, BI)
        y_a = _times(y_a, b_x, weight, head * D + a, valid, start, d_in, BI, DOT)
        y_b = _times(y_b, b_x, weight, head * D + b, valid, start, d_in, BI, DOT)
    if BIAS:
        y_a += tl.load(bias + head * D + a, mask=valid, other=0.0).to(tl.float32)[None, :]
        y_b += tl.load(bias + head * D + b, mask=valid, other=0.0).to(tl.float32)[None, :]
    cell = tl.load(cells + rows * cell_stride, mask=rows < B, other=0).to(tl.int64)
    inside = (rows[:, None] < B) & valid[None, :]
    if R > 0:  # noqa: SIM102  (one is known when the kernel is compiled, the other when it runs)
        if head < heads + kv_heads:
            turns = inside & (j[None, :] < R)
            angle = rows[:, None] * angle_stride + j[None, :]
            c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
            s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32)
            turned = y_a * c - y_b * s
            y_b = y_b * c + y_a * s
            y_a = turned
    row = rows[:, None].to(tl.int64)
    if head < heads:
        to = q + (row * heads + head) * D
        tl.store(to + a[None, :], y_a.to(q.dtype.element_ty), mask=inside)
        tl.store(to + b[None, :], y_b.to(q.dtype.element_ty), mask=inside)
    else:
        if head < heads + kv_heads:
            to = (
                k
                + row * k_strides[0]
                + (head - heads).to(tl.int64) * k_strides[1]
                + cell[:, None] * k_strides[2]
            )
        else:
            to = (
                v
                + row * v_strides[0]
                + (head - heads - kv_heads).to(tl.int64) * v_strides[1]
                + cell[:, None] * v_strides[2]
            )
        tl.store(to + a[None, :], y_a.to(k.dtype.element_ty), mask=inside)
        tl.store(to + b[None, :], y_b.to(k.dtype.element_ty), mask=inside)


def _row_tiles(rows: int, columns: int) -> dict[str, int | bool]:
    """Rows and columns of x a program takes at once."""
    dot = rows > FEW
    block = min(32, triton.next_power_of_2(rows)) if dot else triton.next_power_of_2(rows)
    wide = min(128 if dot else 512, max(16, triton.next_power_of_2(columns)))
    return {"BM": max(16, block) if dot else block, "BI": wide, "DOT": dot}


def splits_of(rows: int, kv_heads: int, capacity: int, processors: int) -> int:
    """Parts the cells are divided into: two programs a processor, of 256 cells or more."""
    wanted = min(-(-2 * processors // (rows * kv_heads)), -(-capacity // 256))
    return min(64, triton.next_power_of_2(max(1, wanted)))


def attention(
    q: Tensor, k: Tensor, v: Tensor, cells: Tensor, slots: int, seen: tuple[int, int], scale: float
) -> Tensor:
    """q [B, H, D] over the cache k, v [B, H_kv, C, D]; returns [B, H, D]."""
    (rows, heads, size), kv_heads, target = q.shape, k.shape[1], target_of(q)
    splits = splits_of(rows, kv_heads, k.shape[2], target.processors)
    parts = q.new_empty((rows, heads, splits, size), dtype=torch.float32)
    lses, out = q.new_empty((rows, heads, splits), dtype=torch.float32), q.new_empty(rows, heads, size)
    block = max(16, triton.next_power_of_2(size))
    group = heads // kv_heads
    decode_attention_split_kernel[(kv_heads, rows, splits)](
        q, k, v, cells, parts, lses, q.stride()[:2], k.stride()[:3], v.stride()[:3], min(1, cells.numel() - 1), group,
        scale * 1.4426950408889634, slots, *seen, D=size, BD=block, BG=max(16, triton.next_power_of_2(group)),
        BN=32 if target is INTERPRETER or block >= 256 else 64, SPLITS=splits,
    )  # fmt: skip
    decode_attention_join_kernel[(rows * heads,)](parts, lses, out, D=size, BD=block, SPLITS=splits)
    return out


def linear(
    x: Tensor, norm: tuple[Tensor, Tensor | None, float, str] | None, weight: Tensor, bias: Tensor | None,
    residual: Tensor | None, activation: str | None,
) -> Tensor:  # fmt: skip
    """residual + activation(norm(x) W^T + bias) for contiguous x [B, d_in] and weight [d_out or 2 d_out, d_in]."""
    rows, columns = x.shape
    width = weight.shape[0] // (2 if activation == "swiglu" else 1)
    out = x.new_empty(rows, width)
    norm_weight, norm_bias, eps, kind = norm or (x, None, 0.0, None)
    choice, block = _row_tiles(rows, columns), 16
    decode_linear_kernel[(triton.cdiv(width, block), triton.cdiv(rows, choice["BM"]))](
        x, norm_weight, norm_weight if norm_bias is None else norm_bias, weight, weight if bias is None else bias,
        x if residual is None else residual, out, rows, columns, width, eps,
        NORM=NORMS.index(kind), NORM_BIAS=norm_bias is not None, ACTIVATION=ACTIVATIONS.index(activation),
        BIAS=bias is not None, RESIDUAL=residual is not None, BO=block, **choice,
    )  # fmt: skip
    return out


def qkv(
    x: Tensor, norm: tuple[Tensor, Tensor | None, float, str], weight: Tensor, bias: Tensor | None, cos: Tensor | None,
    sin: Tensor | None, cells: Tensor, k: Tensor, v: Tensor,
) -> Tensor:  # fmt: skip
    """Queries [B, H, D] of x [B, d]; keys and values go to `cells` of k and v [B, H_kv, C, D]; angles [1 or B, r/2]."""
    rows, columns = x.shape
    kv_heads, size = k.shape[1], k.shape[3]
    heads = weight.shape[0] // size - 2 * kv_heads
    q = x.new_empty(rows, heads, size)
    half = 0 if cos is None else cos.shape[-1]
    norm_weight, norm_bias, eps, kind = norm
    choice = _row_tiles(rows, columns)
    pairs = 16 if choice["DOT"] else 8
    decode_qkv_kernel[(heads + 2 * kv_heads, triton.cdiv(size // 2, pairs), triton.cdiv(rows, choice["BM"]))](
        x, norm_weight, norm_weight if norm_bias is None else norm_bias, weight, weight if bias is None else bias,
        x if cos is None else cos.contiguous(), x if sin is None else sin.contiguous(), cells, q, k, v, k.stride()[:3],
        v.stride()[:3], min(1, cells.numel() - 1), 0 if cos is None or len(cos) == 1 else half, rows, columns, heads,
        kv_heads, eps,
        NORM=NORMS.index(kind), NORM_BIAS=norm_bias is not None, BIAS=bias is not None, R=half, D=size, BP=pairs, **choice,
    )  # fmt: skip
    return q
