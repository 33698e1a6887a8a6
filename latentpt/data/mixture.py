"""Mixtures: several corpora in one stream, each with its share, exact at every position.

Source i with weight w_i of W = sum(w) has the share n w_i / W of the first n samples. Its k-th sample (k = 1, 2, ..)
may stand at positions floor((k - 1) W / w_i) + 1 .. ceil(k W / w_i), counted from 1; whenever every sample stands in
its window, each source is within one sample of its share after any n. Taking, at each position, the sample whose
window closes first never misses a window (the chairman assignment of Tijdeman, as scheduling by earliest deadline).

To reach position 10^9 as fast as position 0 the stream is cut into blocks. Counts at a block's edge must be ones that
a full schedule passes through. From the counts `_anchor(n)` at the edge before, which are given in closed form, the
rule can be followed for ever; so the counts it reaches one block later lie on a schedule, and by Hall's theorem for
intervals a schedule leads from those of one edge to those of the next when a block holds every source at least once.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from latentpt.data.batches import TokenDataset
from latentpt.data.errors import DataError
from latentpt.data.order import derive_seed

_SHORTEST_BLOCK = 4096
_SMALLEST_SHARE = 1_000_000  # one sample in so many; a block holds each source at least once


class Interleaving:
    """Which source stands at which position of an endless stream, for integer weights; any position at once."""

    def __init__(self, weights: Sequence[int]) -> None:
        """`weights` are positive; only their ratios matter."""
        divisor = gcd(*weights)
        self.weights = [weight // divisor for weight in weights]
        self.total = sum(self.weights)
        self.block = max(_SHORTEST_BLOCK, -(-self.total // min(self.weights)))
        self._edge = functools.lru_cache(maxsize=4)(self._edge_counts)
        self._schedule = functools.lru_cache(maxsize=4)(self._block_schedule)

    def locate(self, positions: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source [k] at each of `positions` [k] (from 0) and how many of its samples came before it [k]."""
        positions = np.asarray(positions, dtype=np.int64)
        sources, earlier = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // self.block
        for block in np.unique(blocks):
            here = blocks == block
            order, count = self._schedule(int(block))
            sources[here] = order[positions[here] % self.block]
            earlier[here] = count[positions[here] % self.block]
        return sources, earlier

    def counts(self, n: int) -> NDArray[np.int64]:
        """How many of the first `n` samples come from each source: [sources]."""
        counts = np.array(self._edge(n // self.block), dtype=np.int64)
        order, _ = self._schedule(n // self.block)
        return counts + np.bincount(order[: n % self.block], minlength=len(self.weights))

    def _anchor(self, n: int) -> list[int]:
        """Counts after `n` from which the rule can be followed: rounded down, then one more for the most urgent."""
        counts = [n * weight // self.total for weight in self.weights]
        urgent = sorted(
            (self._deadline(source, counts[source] + 1), source)
            for source, weight in enumerate(self.weights)
            if n * weight % self.total
        )
        for _, source in urgent[: n - sum(counts)]:
            counts[source] += 1
        return counts

    def _deadline(self, source: int, k: int) -> int:
        return -(-k * self.total // self.weights[source])

    def _release(self, source: int, k: int) -> int:
        return (k - 1) * self.total // self.weights[source] + 1

    def _edge_counts(self, block: int) -> list[int]:
        """Counts of each source before `block` starts."""
        if block == 0:
            return [0] * len(self.weights)
        start = (block - 1) * self.block
        counts = self._anchor(start)
        for source in self._follow(counts, start, None):
            counts[source] += 1
        return counts

    def _block_schedule(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source at every position of `block` and its count before that position, in the whole stream."""
        counts = list(self._edge(block))
        order = self._follow(counts, block * self.block, self._edge(block + 1))
        earlier = np.empty(self.block, dtype=np.int64)
        for position, source in enumerate(order):
            earlier[position] = counts[source]
            counts[source] += 1
        return np.array(order, dtype=np.int64), earlier

    def _follow(self, counts: Sequence[int], start: int, last: Sequence[int] | None) -> list[int]:
        """Sources of one block from position `start` by the rule; no source goes beyond its count in `last`."""
        waiting = [(self._release(source, k + 1), source, k + 1) for source, k in enumerate(counts)]
        heapq.heapify(waiting)
        ready: list[tuple[int, int, int]] = []
        order = []
        for position in range(start + 1, start + self.block + 1):
            while waiting and waiting[0][0] <= position:
                _, source, k = heapq.heappop(waiting)
                if last is None or k <= last[source]:
                    heapq.heappush(ready, (self._deadline(source, k), source, k))
            _, source, k = heapq.heappop(ready)
            order.append(source)
            heapq.heappush(waiting, (self._release(source, k + 1), source, k + 1))
        return order


class Mixture:
    """Several corpora as one stream of samples, each with its exact share; reads like a TokenDataset.

    Attributes:
        names: name of each source.
        shares: share of each source in the stream, sum 1.
        sample_length, vocab_size, eod_id, num_tokens, num_samples: as of a TokenDataset, over all sources.
    """

    def __init__(self, sources: dict[str, TokenDataset], weights: Sequence[int | float | Fraction]) -> None:
        """Mix `sources` by `weights` (any positive numbers; decimals are taken as written).

        Raises DataError for a weight that is not positive or too small beside the others, and when the sources were
        made by different tokenizers or cut to different lengths.
        """
        self.names, self._datasets = list(sources), list(sources.values())
        exact = [Fraction(str(weight)) for weight in weights]
        for name, weight in zip(self.names, exact, strict=True):
            if weight * _SMALLEST_SHARE < sum(exact) or weight <= 0:
                raise DataError(
                    f"source {name!r} has weight {float(weight):g} of {float(sum(exact)):g}; "
                    f"a share must be at least one in {_SMALLEST_SHARE:,}"
                )
        scale = lcm(*(weight.denominator for weight in exact))
        self.order = Interleaving([int(weight * scale) for weight in exact])
        self.shares = [float(weight / sum(exact)) for weight in exact]
        first = self._datasets[0]
        for name, dataset in zip(self.names, self._datasets, strict=True):
            if (dataset.vocab_size, dataset.eod_id) != (first.vocab_size, first.eod_id):
                raise DataError(
                    f"source {name!r} was tokenized with another tokenizer than {self.names[0]!r}"
                )
            if dataset.sample_length != first.sample_length:
                raise DataError(f"source {name!r} has samples of another length than {self.names[0]!r}")
        self.sample_length, self.vocab_size, self.eod_id = first.sample_length, first.vocab_size, first.eod_id
        self.location = first.location
        self.num_tokens = sum(dataset.num_tokens for dataset in self._datasets)
        self.num_samples = sum(dataset.num_samples for dataset in self._datasets)

    @property
    def limit(self) -> int | None:
        """Ids that are read must be below it, in all sources alike."""
        return self._datasets[0].limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        for dataset in self._datasets:
            dataset.limit = limit

    def counts(self, samples: int) -> dict[str, int]:
        """Samples of each source among the first `samples` of the stream."""
        return dict(zip(self.names, self.order.counts(samples).tolist(), strict=True))

    def epochs(self, samples: int) -> dict[str, float]:
        """How often each source has been read after `samples` of the stream."""
        counts = self.counts(samples).items()
        return {
            name: count / data.num_samples for (name, count), data in zip(counts, self._datasets, strict=True)
        }

    def read(self, positions: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
        """Samples at `positions` [k] of the endless stream of `seed`: [k, sample_length + 1]."""
        sources, earlier = self.order.locate(positions)
        rows = np.empty((len(sources), self.sample_length + 1), dtype=np.int64)
        for source in np.unique(sources):
            here = sources == source
            rows[here] = self._datasets[source].read(earlier[here], derive_seed(seed, int(source)))
        return rows
