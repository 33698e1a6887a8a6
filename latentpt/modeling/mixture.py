"""The expected embedding under the model's own next-token distribution, without all its probabilities at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentpt.modeling.decoder import Head
from latentpt.modeling.linear import linear
from latentpt.modeling.loss import CHUNK_ROWS

Product = Callable[..., Tensor]
"""Logits of x and W: x W^T, or what a head makes of it."""


def softmax_mixture(
    hidden: Tensor,
    head: Tensor,
    table: Tensor,
    top_k: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
    multiply: Product = linear,
) -> Tensor:
    """P W_e with P = softmax(hidden W_o^T), for hidden [.., d], head W_o [V, d], table W_e [V, d]; returns [.., d].

    With `top_k` the softmax runs over the k largest logits and only their rows are mixed. Probabilities exist for
    `chunk_rows` rows at a time; the backward makes them again.
    """
    rows = hidden.flatten(0, -2)
    mixed = [
        checkpoint(_mix, chunk, head, table, top_k, multiply, use_reentrant=False)
        if torch.is_grad_enabled()
        else _mix(chunk, head, table, top_k, multiply)
        for chunk in rows.split(chunk_rows)
    ]
    return torch.cat(mixed).view_as(hidden)


def _mix(hidden: Tensor, head: Tensor, table: Tensor, top_k: int | None, multiply: Product) -> Tensor:
    logits = multiply(hidden, head)
    if top_k is None or top_k >= logits.shape[-1]:
        return logits.softmax(dim=-1).to(table.dtype) @ table
    largest = logits.topk(top_k, dim=-1)
    weights = largest.values.softmax(dim=-1).to(table.dtype)
    return torch.nn.functional.embedding_bag(largest.indices, table, per_sample_weights=weights, mode="sum")


class Mixture(nn.Module):
    """softmax_mixture as a module, so that ZeRO-3 gathers head and embedding around it."""

    def forward(self, hidden: Tensor, head: Head, embedding: nn.Embedding, top_k: int | None) -> Tensor:
        """Mixture [.., d] of the unscaled embedding rows."""
        return softmax_mixture(hidden, head.weight, embedding.weight, top_k, multiply=head.logits)
