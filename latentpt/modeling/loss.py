"""Linear layer and cross-entropy in one, in chunks: the logits of all tokens never exist at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from latentpt_kernels import linear_cross_entropy
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["CHUNK_ROWS", "IGNORE", "capped_cross_entropy", "linear_cross_entropy", "soft_cap"]

IGNORE = -100
"""Target of positions that carry no loss."""
CHUNK_ROWS = 2048
"""Most rows whose logits others hold at a time (2048 x 50304 float32 = 412 MB)."""


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap tanh(z / cap), or z itself (Gemma 2, arXiv 2408.00118, section 2)."""
    return logits if cap is None else (logits / cap).tanh() * cap


def capped_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """linear_cross_entropy of hidden [M, d], weight [V, d], targets int64 [M] with logits under a soft cap.

    Logits exist for `chunk_rows` rows at a time; the backward makes them again.
    """

    def nats(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = soft_cap(F.linear(rows, weight), cap)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(wide, wanted, ignore_index=IGNORE, reduction="sum")

    chunks = zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True)
    return torch.stack([checkpoint(nats, *chunk, use_reentrant=False) for chunk in chunks]).sum()
