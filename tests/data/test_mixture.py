"""Mixtures: exact shares, at any position, with the interface of one corpus."""

from __future__ import annotations

import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.data.batches import BatchStream, TokenDataset
from latentpt.data.errors import DataError
from latentpt.data.mixture import Interleaving, Mixture
from tests.data.test_batches import make_folder

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(weights=WEIGHTS, block=st.integers(0, 10**9))
def test_every_source_is_within_one_of_its_share_after_any_number_of_samples(
    weights: list[int], block: int
) -> None:
    order = Interleaving(weights)
    start = block * order.block  # two blocks anywhere in the stream
    sources, earlier = order.locate(np.arange(start, start + 2 * order.block))
    total = sum(weights)
    for source, weight in enumerate(weights):
        counts = int(order.counts(start)[source]) + np.cumsum(sources == source)
        # |count - n w / W| < 1 without leaving the integers
        share = np.array([(start + i) * weight for i in range(1, len(sources) + 1)], dtype=object)
        assert (abs(counts.astype(object) * total - share) < total).all()
        assert np.array_equal(earlier[sources == source], counts[sources == source] - 1)


@given(weights=WEIGHTS, positions=st.lists(st.integers(0, 10**8), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_any_position_is_located_without_those_before_it(weights: list[int], positions: list[int]) -> None:
    together = Interleaving(weights).locate(np.array(positions))
    for index, position in enumerate(positions):
        alone = Interleaving(weights).locate(np.array([position]))
        assert (alone[0][0], alone[1][0]) == (together[0][index], together[1][index])


@pytest.fixture
def datasets(tmp_path: Path) -> dict[str, TokenDataset]:
    sizes = {"a": 400, "b": 1000, "c": 90}
    return {
        name: TokenDataset(make_folder(tmp_path / name, [size], first=10000 * i), 8)
        for i, (name, size) in enumerate(sizes.items())
    }


def test_each_source_is_read_once_an_epoch_in_its_own_order(datasets: dict[str, TokenDataset]) -> None:
    mixture = Mixture(datasets, [0.5, 0.3, 0.2])
    rows = mixture.read(np.arange(400), seed=1)
    source = rows[:, 0] // 10000
    assert mixture.counts(400) == {"a": 200, "b": 120, "c": 80}
    assert np.bincount(source).tolist() == [200, 120, 80]
    for index, dataset in enumerate(datasets.values()):
        starts = rows[source == index, 0]
        epoch = min(dataset.num_samples, len(starts))
        assert len(set(starts[:epoch].tolist())) == epoch
    assert mixture.epochs(400)["c"] == 80 / 11


def test_a_mixture_resumes_from_one_integer_on_another_number_of_ranks(
    datasets: dict[str, TokenDataset],
) -> None:
    mixture = Mixture(datasets, [3, 2, 1])
    with BatchStream(mixture, 5, global_batch=8, micro_batch=8) as stream:
        batches = list(islice(stream, 6))
        assert stream.samples_seen == 48
    with BatchStream(mixture, 5, 8, micro_batch=2, rank=1, world=2, start_sample=32) as second:
        assert np.array_equal(next(second), batches[4][2:4])
        assert np.array_equal(next(second), batches[4][6:8])


def test_position_a_billion_is_reached_at_once(datasets: dict[str, TokenDataset]) -> None:
    mixture = Mixture(datasets, [Fraction(1, 3), 0.1234, 2])
    started = time.perf_counter()
    mixture.read(np.arange(10**9, 10**9 + 8), seed=0)
    assert time.perf_counter() - started < 2


def test_a_weight_that_makes_no_sense_is_refused_by_name(datasets: dict[str, TokenDataset]) -> None:
    for weight in (0, -1, 1e-9):
        with pytest.raises(DataError, match="source 'b' has weight"):
            Mixture(datasets, [1, weight, 1])
