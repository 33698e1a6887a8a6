"""Documents inside a sample: which document a token belongs to and where in it, for models that keep them apart.

Samples run across documents. By default a model sees the whole sample, as Pythia did; with document masking attention
stays inside a document and positions restart at its first token. The end-of-document token belongs to the document
that it ends. Every latent slot (t, s) has the document and the position of its token t.
"""

from __future__ import annotations

from torch import Tensor


def document_ids(tokens: Tensor, eod_id: int) -> Tensor:
    """Number of the document of every token of `tokens` [B, L], counted from 0 in each sample: int64 [B, L]."""
    ends = (tokens == eod_id).long()
    return ends.cumsum(dim=-1) - ends
