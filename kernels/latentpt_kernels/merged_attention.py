"""Attention over key blocks as calls of torch's own attention, merged by log-sum-exp.

Every block becomes one or two pieces, a run of query rows that see a run of keys plainly or causally, and every piece
one call of a library kernel; with out_b and lse_b of every piece

    lse = log sum_b exp(lse_b),      out = sum_b exp(lse_b - lse) out_b.

The backward of a piece is the kernel's own, given the *merged* out and lse (the identity behind ring attention, Liu et
al. 2023, arXiv 2310.01889). Nothing quadratic is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten  # overloads are named, for later versions of torch add others


def forward(
    kernel: type[Kernel], q: Tensor, kv: Sequence[Tensor], relations: Sequence[str], scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, H, n, D] in the dtype of q and lse [B, H, n] in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    n, out, lse = q.shape[2], None, None
    for k, v, relation in zip(kv[::2], kv[1::2], relations, strict=True):
        for rows, count, causal in pieces(n, k.shape[2], relation):
            k_seen, v_seen = _seen(kernel, k, v, count, q)
            part, part_lse = kernel.forward(q[:, :, rows], k_seen, v_seen, causal, scale)
            if out is None and part.shape[2] == n:
                out, lse = part.to(wide), part_lse.to(wide)
                continue
            if out is None or lse is None:
                out = torch.zeros_like(q, dtype=wide)
                lse = q.new_full(q.shape[:3], float("-inf"), dtype=wide)
            here, here_lse = out[:, :, rows], lse[:, :, rows]
            merged = torch.logaddexp(here_lse, part_lse)
            keep, add = ((known - merged).exp_().unsqueeze(-1) for known in (here_lse, part_lse))
            here.mul_(keep).addcmul_(part.to(wide), add)
            here_lse.copy_(merged)
    if out is None or lse is None:  # no query sees any key
        return torch.zeros_like(q), q.new_full(q.shape[:3], float("-inf"), dtype=wide)
    return out.to(q.dtype), lse


def backward(
    kernel: type[Kernel],
    grad: Tensor,
    q: Tensor,
    kv: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    relations: Sequence[str],
    scale: float,
) -> list[Tensor]:
    """Gradients of q and of every k and v, in that order."""
    n = q.shape[2]
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()  # the libraries insist on it
    grad_q: Tensor | None = None
    grads: list[Tensor] = []
    for k, v, relation in zip(kv[::2], kv[1::2], relations, strict=True):
        grad_k: Tensor | None = None
        grad_v: Tensor | None = None
        for rows, count, causal in pieces(n, k.shape[2], relation):
            k_seen, v_seen = _seen(kernel, k, v, count, q)
            dq, dk, dv = kernel.backward(
                grad[:, :, rows],
                q[:, :, rows],
                k_seen,
                v_seen,
                out[:, :, rows],
                lse[:, :, rows],
                causal,
                scale,
            )
            grad_q = _put(grad_q, q, rows, dq)
            grad_k = _put(grad_k, k, slice(count), _gather(dk, k))
            grad_v = _put(grad_v, v, slice(count), _gather(dv, v))
        grads += [_or_zeros(grad_k, k), _or_zeros(grad_v, v)]
    return [_or_zeros(grad_q, q), *grads]


def pieces(n: int, m: int, relation: str) -> Iterator[tuple[slice, int, bool]]:
    """A block of m keys as (query rows, number of keys they see, whether causally) for n queries.

    Causal pieces are square, which every library agrees on; a strict block is a causal one of the rows from 1 on; rows
    behind the last key see all keys.
    """
    if relation == "all":
        if m and n:
            yield slice(0, n), m, False
        return
    first = 1 if relation == "strict" else 0
    square = min(n - first, m)
    if square > 0:
        yield slice(first, first + square), square, True
        if first + square < n:
            yield slice(first + square, n), m, False


def _seen(kernel: type[Kernel], k: Tensor, v: Tensor, count: int, q: Tensor) -> tuple[Tensor, Tensor]:
    """The first keys and values, as many heads of them as the kernel asks for."""
    k, v = k[:, :, :count], v[:, :, :count]
    return (k, v) if kernel.grouped else (expand(k, q), expand(v, q))


def expand(kv: Tensor, q: Tensor) -> Tensor:
    """Repeat grouped heads [B, H_kv, m, D] -> [B, H, m, D]."""
    groups = q.shape[1] // kv.shape[1]
    return kv if groups == 1 else kv.repeat_interleave(groups, dim=1)


def _gather(grad: Tensor, kv: Tensor) -> Tensor:
    """The gradient of `expand`: the sum over a group, [B, H, m, D] -> [B, H_kv, m, D]."""
    groups = grad.shape[1] // kv.shape[1]
    return grad if groups == 1 else grad.unflatten(1, (-1, groups)).sum(2)


def _put(total: Tensor | None, like: Tensor, rows: slice, part: Tensor) -> Tensor:
    """total[:, :, rows] += part, where a first part is not added to zeros."""
    if total is None and part.shape[2] == like.shape[2]:
        return part
    wide = torch.promote_types(like.dtype, torch.float32)
    if total is None:
        total = torch.zeros_like(like, dtype=wide)
        total[:, :, rows] = part
        return total
    total = total.to(wide)
    total[:, :, rows].add_(part)
    return total


def _or_zeros(total: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if total is None else total.to(like.dtype)


class Kernel:
    """One library's attention of q [B, H, n, D] over k, v [B, H, m, D], with its log-sum-exp [B, H, n]."""

    grouped = False
    """Whether it takes k and v of H_kv heads as they are."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """out and lse; here by the formula, for devices and dtypes without a kernel."""
        scores = _scores(q, k, causal, scale)
        lse = scores.logsumexp(dim=-1)
        return (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> Sequence[Tensor]:
        """Gradients of q, k and v, given out and lse over all blocks."""
        p = (_scores(q, k, causal, scale) - lse.unsqueeze(-1)).exp()
        delta = (grad * out).sum(-1, keepdim=True, dtype=p.dtype)
        ds = p * ((grad @ v.mT).to(p.dtype) - delta) * scale
        return ds.to(k.dtype) @ k, ds.to(q.dtype).mT @ q, p.to(grad.dtype).mT @ grad


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Scaled scores [B, H, n, m] in float32 or wider."""
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores


class CPU(Kernel):
    """aten's flash attention for CPUs."""

    grouped = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """out and lse."""
        return aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal, scale=scale)

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> Sequence[Tensor]:
        """Gradients of q, k and v."""
        return aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )


class Flash(Kernel):
    """aten's FlashAttention 2: float16 and bfloat16."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """out and lse."""
        return aten._scaled_dot_product_flash_attention.default(q, k, v, 0.0, causal, False, scale=scale)[:2]

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> Sequence[Tensor]:
        """Gradients of q, k and v."""
        return aten._scaled_dot_product_flash_attention_backward.default(
            grad, q, k, v, out, lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal,
            *_no_dropout(q), scale=scale,
        )  # fmt: skip


class CuDNN(Kernel):
    """cuDNN's attention: float16 and bfloat16; its lse has a last axis of 1."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """out and lse."""
        out, lse = aten._scaled_dot_product_cudnn_attention.default(
            q, k, v, None, True, 0.0, causal, False, scale=scale
        )[:2]
        return out, lse.view(q.shape[:3])

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> Sequence[Tensor]:
        """Gradients of q, k and v."""
        return aten._scaled_dot_product_cudnn_attention_backward.default(
            grad, q, k, v, out, lse.contiguous().unsqueeze(-1), *_no_dropout(q), None, None, None, q.shape[2],
            k.shape[2], 0.0, causal, scale=scale,
        )  # fmt: skip


class Efficient(Kernel):
    """aten's memory-efficient attention: float32 too; its lse has rows in multiples of 32."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """out and lse."""
        out, lse = aten._scaled_dot_product_efficient_attention.default(
            q, k, v, None, True, 0.0, causal, scale=scale
        )[:2]
        return out, lse[:, :, : q.shape[2]]

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> Sequence[Tensor]:
        """Gradients of q, k and v."""
        # exp(score - inf) = 0 beyond the end.
        padded = F.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf")).contiguous()
        return aten._scaled_dot_product_efficient_attention_backward.default(
            grad,
            q,
            k,
            v,
            None,
            out,
            padded,
            *_no_dropout(q),
            0.0,
            [True, True, True, False],
            causal,
            scale=scale,
        )[:3]


def _no_dropout(q: Tensor) -> tuple[Tensor, Tensor]:
    """The dropout state that backward calls ask for; there is no dropout."""
    nothing = torch.empty((), dtype=torch.int64, device=q.device)
    return nothing, nothing


def kernels_for(q: Tensor) -> dict[str, type[Kernel]]:
    """The library kernels that may take tensors like q, the likeliest to be fast first."""
    if q.device.type == "cpu":
        return {"cpu": CPU}
    if q.is_cuda and q.shape[-1] % 8 == 0 and q.dtype in (torch.float16, torch.bfloat16):
        fits_cudnn = q.shape[-1] <= 128 and torch.backends.cudnn.is_available() and not torch.version.hip
        return {**({"cudnn": CuDNN} if fits_cudnn else {}), "flash": Flash, "efficient": Efficient}
    if q.is_cuda and q.dtype == torch.float32 and q.shape[-1] % 4 == 0:
        return {"efficient": Efficient}
    return {"formula": Kernel}


def dense(
    q: Tensor,
    kv: Sequence[Tensor],
    relations: Sequence[str],
    scale: float,
    documents: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """The reference: one softmax over all keys under one explicit mask; out [B, H, n, D] and lse [B, H, n].

    Rows that see no key give out 0 and lse -inf. Differentiable by autograd.
    """
    k = torch.cat([expand(block, q) for block in kv[::2]], dim=2)
    v = torch.cat([expand(block, q) for block in kv[1::2]], dim=2)
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * scale
    scores = scores.masked_fill(~visible(q, kv, relations, documents), float("-inf"))
    lse = scores.logsumexp(dim=-1)
    base = lse.masked_fill(lse == float("-inf"), 0.0)
    return (scores - base.unsqueeze(-1)).exp().to(v.dtype) @ v, lse.detach()


def masked_forward(
    q: Tensor, kv: Sequence[Tensor], relations: Sequence[str], scale: float, documents: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same on a CPU by aten's flash attention under an explicit mask."""
    k, v, mask, blind = _joined(q, kv, relations, documents)
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return out, lse.masked_fill(blind, float("-inf"))


def masked_backward(
    grad: Tensor, q: Tensor, kv: Sequence[Tensor], out: Tensor, lse: Tensor, relations: Sequence[str], scale: float,
    documents: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Gradients of q and of every k and v, in that order."""
    k, v, mask, blind = _joined(q, kv, relations, documents)
    lse = lse.masked_fill(blind, 0.0)  # as the kernel itself says of rows that see nothing
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale
    )
    lengths = [block.shape[2] for block in kv[::2]]
    parts = zip(dk.split(lengths, 2), dv.split(lengths, 2), strict=True)
    return [dq, *(_gather(part, kv[0]).to(kv[0].dtype) for pair in parts for part in pair)]


def _joined(
    q: Tensor, kv: Sequence[Tensor], relations: Sequence[str], documents: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values of all blocks, the mask to add to scores, and which rows see nothing [B, 1, n]."""
    k, v = (torch.cat(list(kv[i::2]), dim=2) for i in range(2))
    seen = visible(q, kv, relations, documents)
    mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, float("-inf"))
    return k, v, mask, ~seen.any(-1)


def visible(
    q: Tensor, kv: Sequence[Tensor], relations: Sequence[str], documents: Sequence[Tensor] = ()
) -> Tensor:
    """Which keys of all blocks each query sees, bool [B or 1, 1, n, sum m]."""
    rows = torch.arange(q.shape[2], device=q.device)[:, None]
    parts = []
    for index, (k, relation) in enumerate(zip(kv[::2], relations, strict=True)):
        columns = torch.arange(k.shape[2], device=q.device)[None, :]
        limit: Any = {"causal": rows + 1, "strict": rows, "all": k.shape[2]}[relation]
        seen = (columns < limit).expand(q.shape[2], -1)[None, None]
        if documents:
            seen = seen & (documents[0][:, None, :, None] == documents[index + 1][:, None, None, :])
        parts.append(seen)
    return torch.cat(parts, dim=-1)
