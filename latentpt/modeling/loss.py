"""Linear layer and cross-entropy in one, in chunks: the logits of all tokens never exist at once."""

from __future__ import annotations

from latentpt_kernels import linear_cross_entropy

__all__ = ["CHUNK_ROWS", "IGNORE", "linear_cross_entropy"]

IGNORE = -100
"""Target of positions that carry no loss."""
CHUNK_ROWS = 2048
"""Most rows whose logits others hold at a time (2048 x 50304 float32 = 412 MB)."""
