"""Documents inside a sample: which one a token belongs to and where in it, for models that keep them apart.

Samples run across documents. By default a model sees the whole sample, as Pythia did; kept apart, attention and carried
states stay inside a document and positions restart at its first token. The end-of-document token *opens* the document
after it: the document before learns to predict it as its end, and what follows it is learnt as a beginning, which is
how prompts and rolling likelihoods begin. Every slot (t, s) has the document and the position of its token t.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_ids(tokens: Tensor, eod_id: int) -> Tensor:
    """Number of the document of every token of `tokens` [B, L], counted in each sample: int64 [B, L]."""
    return (tokens == eod_id).long().cumsum(dim=-1)


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token in its document, for the `document_ids` [B, L] of a sample: int64 [B, L].

    A document that began before the sample counts from the sample's first token.
    """
    index = torch.arange(documents.shape[-1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return index - torch.where(starts, index, 0).cummax(dim=-1).values
