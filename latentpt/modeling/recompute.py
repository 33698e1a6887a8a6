"""Activations that are made again in the backward pass instead of being kept.

    none        everything is kept
    selective   of every block the outputs of matrix products and of causal attention are kept, the rest is made again
    block       of every block its input is kept
    pass        of every pass through the layers its input is kept, and the keys and values that later ones see

Always non-reentrant: with the reentrant kind ZeRO-2 and 3 fail where a block runs several times in one forward
(arXiv 1604.06174; nothing here draws from a generator, so no random state is kept).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

T = TypeVar("T")

ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "_flash_attention_forward",
    "_efficient_attention_forward",
)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation")
KEPT = {packet.default for name in (*ATTENTION, *PRODUCTS) if (packet := getattr(torch.ops.aten, name, None))}
"""What `selective` keeps the outputs of."""


def recompute(function: Callable[..., T], *inputs: Any, selective: bool = False) -> T:
    """function(*inputs), whose activations (but for what `selective` keeps) are made again in the backward pass."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    chosen: dict[str, Any] = {"context_fn": contexts} if selective else {}
    result: T = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **chosen)
    return result


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    # Without a gradient it is inside of our own attention over several key blocks, which merges its parts in place.
    kept = operator in KEPT and torch.is_grad_enabled()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
