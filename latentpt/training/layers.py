"""Norms of gradients and parameters layer by layer, from the parts of them that ranks have."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = re.compile(r"blocks\.\d+")


def layer_of(name: str) -> str:
    """What a parameter belongs to: `blocks.3`, `embedding`, `norm`, `head`, `method`, .."""
    if found := BLOCK.search(name):
        return found[0]
    words = name.split(".")
    return words[words.index("decoder") + 1] if "decoder" in words[:-1] else words[0]


def squares(parts: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> Tensor:
    """Sum of squares of every part, float32 [names] on `device`; zero where there is none. Nobody waits for it."""
    here = [name for name in names if name in parts]
    measured = torch._foreach_norm([parts[name] for name in here], 2, dtype=torch.float32) if here else []
    found = {name: norm.to(device) for name, norm in zip(here, measured, strict=True)}
    nothing = torch.zeros((), device=device)
    return torch.stack([found.get(name, nothing) for name in names]).square()


def norms(sums: Tensor, divided: bool) -> list[float]:
    """Norms of whole tensors from the squares [names] of this rank's parts, `divided` among ranks or whole on each.

    Collective, and the host waits.
    """
    if divided:
        dist.all_reduce(sums)
    values: list[float] = sums.sqrt().tolist()
    return values


def by_layer(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Norms of layers from those of their parameters, in the order of the parameters."""
    sums: dict[str, float] = defaultdict(float)
    for name, value in zip(names, values, strict=True):
        sums[layer_of(name)] += value**2
    return {layer: total**0.5 for layer, total in sums.items()}
