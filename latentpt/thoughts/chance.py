"""Random numbers inside a training forward: a function of (seed, step), of the sweep and of the text read so far.

Nothing else enters, so that samples draw the same on whatever rank, in whatever micro-batch and under whatever
partition they are; and nothing is drawn from a generator, so that nothing waits for the host. A number at position t is
a hash of the tokens up to t, which tells nothing of those to come.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 over the golden ratio, as a signed number


class Chance(NamedTuple):
    """What random numbers of a stretch follow from."""

    tokens: Tensor
    """A hash for every token, int64 [B, L]."""
    documents: Tensor
    """A hash for every token's document, int64 [B, L]."""
    place: Tensor
    """How far into its document a token lies, float32 [B, L]: 0 for the first, below 1 for the last."""

    def at(self, index: slice) -> Chance:
        """Those of some positions."""
        return Chance(*(part[:, index] for part in self))

    def of(self, draw: int) -> Chance:
        """Those of one of several independent draws."""
        return Chance(_mixed(self.tokens ^ draw), _mixed(self.documents ^ draw), self.place)

    def uniform(self, width: int) -> Tensor:
        """Numbers in [0, 1) for every token, float32 [B, L, width]."""
        index = torch.arange(1, width + 1, device=self.tokens.device)
        return _unit(_mixed(self.tokens[..., None] + index * _GOLDEN))

    def of_document(self) -> Tensor:
        """A number in [0, 1) for every token, the same in all of its document, float32 [B, L]."""
        return _unit(self.documents)


def make_chance(key: int, ids: Tensor, positions: Tensor) -> Chance:
    """The numbers of tokens int64 [B, L] at positions [B, L] or [L] of their documents, for a key."""
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    tokens = _mixed(_mixed(ids + place * _GOLDEN).cumsum(dim=1) ^ key)
    start = place - positions
    lengths = torch.zeros_like(ids).scatter_add_(1, start, torch.ones_like(ids)).gather(1, start)
    return Chance(tokens, _mixed(tokens.gather(1, start)), positions.expand_as(ids) / lengths)


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finalizer: every bit of an int64 depends on all of them (Steele et al. 2014)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ _right(x, shift)) * factor
    return x ^ _right(x, 31)


def _right(x: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros, also for negative numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _unit(x: Tensor) -> Tensor:
    """The upper 24 bits as float32 in [0, 1)."""
    return _right(x, 40).float() * 2.0**-24
