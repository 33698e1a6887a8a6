"""Sample order without memory: a keyed permutation of 0 .. n - 1, evaluated at any index at once.

A Feistel network over the smallest power of two that is at least n permutes that power of two; an image outside
0 .. n - 1 is sent through again until it falls inside (cycle walking), which leaves a permutation of 0 .. n - 1.
The keys are a pure function of (seed, epoch), so any position of any epoch is reached without what came before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 12
_MIN_BITS = 5  # narrower networks reach too few permutations; walking out of 32 values costs little
_MASK64 = (1 << 64) - 1


def mix64(value: int) -> int:
    """Hash one 64-bit integer into another (the finaliser of splitmix64); a bijection."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def derive_seed(seed: int, *numbers: int) -> int:
    """A 64-bit seed that depends on `seed` and on every one of `numbers`, in order."""
    for number in numbers:
        seed = mix64(mix64(seed & _MASK64) ^ (number & _MASK64))
    return seed


def _scramble(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Keyed hash of each 64-bit value; unsigned arithmetic wraps around."""
    values = (values ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(32))


class Permutation:
    """A bijection of 0 .. length - 1 chosen by (seed, epoch); constant memory, any index in constant time."""

    def __init__(self, length: int, seed: int, epoch: int = 0) -> None:
        """`length` >= 1 items; equal (length, seed, epoch) give equal permutations everywhere."""
        if length < 1:
            raise ValueError(f"a permutation needs at least one item, got length {length}")
        self.length = length
        bits = max(_MIN_BITS, (length - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        base = derive_seed(seed, epoch)
        self._keys = [np.uint64(mix64(base ^ round_)) for round_ in range(_ROUNDS)]

    def __call__(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Images of `indices` [...], each in 0 .. length - 1."""
        images = self._network(np.asarray(indices).astype(np.uint64))
        outside = images >= self.length
        while outside.any():
            images[outside] = self._network(images[outside])
            outside = images >= self.length
        return images.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low, high = values & self._low_mask, values >> self._low_bits
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            low = low ^ (_scramble(high, even) & self._low_mask)
            high = high ^ (_scramble(low, odd) & self._high_mask)
        return (high << self._low_bits) | low


def shuffled(positions: NDArray[np.integer], length: int, seed: int) -> NDArray[np.int64]:
    """Samples read at `positions` [k] of an endless stream over `length` samples, reshuffled every epoch.

    Positions e * length .. (e + 1) * length - 1 are epoch e and hold each sample exactly once.
    """
    positions = np.asarray(positions, dtype=np.int64)
    epochs = positions // length
    samples = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        samples[here] = Permutation(length, seed, int(epoch))(positions[here] % length)
    return samples
