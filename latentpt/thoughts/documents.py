"""Positions of tokens whose documents are kept apart."""

from __future__ import annotations

import torch
from torch import Tensor


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token in its document, for the `document_ids` [B, L] of a sample: int64 [B, L].

    A document that began before the sample counts from the sample's first token.
    """
    index = torch.arange(documents.shape[-1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return index - torch.where(starts, index, 0).cummax(dim=-1).values
