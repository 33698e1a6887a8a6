"""Randomness as a pure function of (seed, labels): nothing here reads or changes global state."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *labels: int | str) -> torch.Generator:
    """A CPU generator that depends on the seed and the labels alone, e.g. stream(seed, "refinements", step)."""
    digest = hashlib.blake2b(repr((seed, labels)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))  # torch's Mersenne twister takes 32 bits
