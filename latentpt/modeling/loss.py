"""Linear layer and cross-entropy in one, in chunks: the logits of all tokens never exist at once."""

from __future__ import annotations

from latentpt_kernels import linear_cross_entropy, nats_of_rows
from torch import Tensor

__all__ = ["CHUNK_ROWS", "IGNORE", "linear_cross_entropy", "nats_of_rows", "soft_cap"]

IGNORE = -100
"""Target of positions that carry no loss."""
CHUNK_ROWS = 2048
"""Most rows whose logits others hold at a time (2048 x 50304 float32 = 412 MB)."""


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap tanh(z / cap), or z itself (Gemma 2, arXiv 2408.00118, section 2)."""
    return logits if cap is None else (logits / cap).tanh() * cap
