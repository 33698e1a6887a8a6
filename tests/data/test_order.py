"""The keyed permutation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.data.order import Permutation, derive_seed, shuffled


@settings(deadline=None)
@given(length=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_the_order_of_an_epoch_is_a_bijection(length: int, seed: int, epoch: int) -> None:
    images = Permutation(length, seed, epoch)(np.arange(length))
    assert np.array_equal(np.sort(images), np.arange(length))


@settings(deadline=None)
@given(start=st.integers(0, 10**12), seed=st.integers(0, 2**32))
def test_any_position_is_reached_without_those_before_it(start: int, seed: int) -> None:
    length = 977
    positions = np.arange(start, start + 40)
    one_by_one = np.concatenate([shuffled(positions[i : i + 1], length, seed) for i in range(40)])
    assert np.array_equal(shuffled(positions, length, seed), one_by_one)


def test_every_epoch_has_its_own_order_and_every_seed_too() -> None:
    orders = [Permutation(1000, seed, epoch)(np.arange(1000)) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10  # two random permutations agree in one place on average


def test_all_permutations_of_four_items_are_equally_likely() -> None:
    epochs = 960
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(epochs):
        order = tuple(Permutation(4, 3, epoch)(np.arange(4)).tolist())
        counts[order] = counts.get(order, 0) + 1
    expected = epochs / 24
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values()) + (24 - len(counts)) * expected
    assert chi_square < 49.7  # 99.9 % quantile for 23 degrees of freedom


@pytest.mark.parametrize("length", [1000, 2**16, 10**9 + 7])
def test_where_an_item_lands_is_uniform(length: int) -> None:
    epochs, bins = 4000, 20
    index = np.array([length // 3])
    landed = np.array([Permutation(length, 11, epoch)(index)[0] for epoch in range(epochs)])
    counts = np.bincount(landed * bins // length, minlength=bins)
    assert ((counts - epochs / bins) ** 2 / (epochs / bins)).sum() < 43.8  # 99.9 %, 19 degrees of freedom


def test_neighbours_are_not_kept_together() -> None:
    images = Permutation(10**6, 5)(np.arange(20000))
    gaps = np.abs(np.diff(images))
    assert 0.31e6 < gaps.mean() < 0.36e6  # a third of the length for independent draws


def test_seeds_derived_from_different_numbers_differ() -> None:
    seeds = {derive_seed(seed, a, b) for seed in range(5) for a in range(5) for b in range(5)}
    assert len(seeds) == 125


def test_an_empty_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Permutation(0, 1)
