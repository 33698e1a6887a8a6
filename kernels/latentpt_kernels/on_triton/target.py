"""What the launchers know of a chip."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Target(NamedTuple):
    """A kind of chip."""

    arch: int
    """Compute capability times 10 (90 for Hopper), or AMD's number (942)."""
    shared: int
    """Bytes of shared memory that one program may use."""
    processors: int
    """Multiprocessors."""
    hip: bool = False


TARGETS = {
    "sm_80": Target(80, 166912, 108),
    "sm_90": Target(90, 232448, 132),
    "sm_100": Target(100, 232448, 148),
    "gfx942": Target(942, 65536, 304, hip=True),
}
"""The chips that every kernel is compiled for in the tests; limits from the vendors' tables."""
INTERPRETER = Target(80, 166912, 4)
"""What Triton's interpreter on a CPU pretends to be: few processors, because it runs them one by one."""


def target_of(like: Tensor) -> Target:
    """The kind of chip that holds a tensor."""
    return _of_device(like.device.index or 0) if like.is_cuda else INTERPRETER


@functools.cache
def _of_device(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Target(942, 65536, properties.multi_processor_count, hip=True)
    shared = getattr(properties, "shared_memory_per_block_optin", 101376)
    return Target(properties.major * 10 + properties.minor, shared, properties.multi_processor_count)


def precision(like: Tensor) -> str:
    """How tl.dot multiplies float32: in three TF32 products on NVIDIA's tensor cores, plainly elsewhere."""
    three = like.dtype == torch.float32 and like.is_cuda and not torch.version.hip
    return "tf32x3" if three else "ieee"
