"""Lanes and helpers: the same results, in order, whatever does the work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from data_prep.work.executors import Report, chunk_results, unit_results
from data_prep.work.progress import Progress, Tick
from data_prep.work.stages import Stage
from latentpt.data.errors import DataError


@dataclass(frozen=True)
class Numbers:
    first: int
    size: int = 8 << 20


def doubled(number: int) -> int:
    return 2 * number


def make() -> object:
    return doubled


def work(numbers: Numbers, helpers: int, report: Report) -> dict[str, object]:
    if numbers.first < 0:
        raise DataError("a number below zero")
    results = list(chunk_results(make, range(numbers.first, numbers.first + 20), helpers))
    report(Tick(numbers.size, 20))
    return {"results": results, "helpers": helpers}


@pytest.mark.slow
@pytest.mark.parametrize(("items", "workers", "helpers"), [(1, 1, 1), (1, 2, 2), (3, 2, 1), (2, 4, 2)])
def test_results_come_in_order_from_lanes_and_helpers(items: int, workers: int, helpers: int) -> None:
    ticks: list[Tick] = []
    results = list(
        unit_results(work, [Numbers(100 * i) for i in range(items)], workers, "local", ticks.append)
    )
    assert [result["results"] for result in results] == [
        [2 * (100 * i + k) for k in range(20)] for i in range(items)
    ]
    assert {result["helpers"] for result in results} == {helpers}
    assert sum(tick.records for tick in ticks) == 20 * items


@pytest.mark.slow
def test_an_error_in_a_lane_is_the_error_of_the_whole() -> None:
    items = [Numbers(0), Numbers(-1), *(Numbers(i) for i in range(10))]
    with pytest.raises(DataError, match="a number below zero"):
        list(unit_results(work, items, 2, "local", lambda tick: None))


@pytest.mark.slow
def test_what_is_refused_on_the_way_stops_all_lanes() -> None:
    def refuse(tick: Tick) -> None:
        raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        list(unit_results(work, [Numbers(i) for i in range(50)], 2, "local", refuse))


def test_small_work_is_done_in_this_process() -> None:
    (result,) = unit_results(work, [Numbers(1, size=1000)], 8, "local", lambda tick: None)
    assert result["helpers"] == 1


def test_a_stage_does_nothing_twice(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    items = [(number, Numbers(number)) for number in (0, 1, 2)]
    with Progress(2 * (8 << 20)) as progress:
        first = dict(stage.run(partial(work), items[:2], 1, "local", progress))
    with Progress(3 * (8 << 20)) as progress:
        second = dict(stage.run(partial(work), items, 1, "local", progress))
        assert progress.line().startswith("100.0%") and progress.skipped == 2 * (8 << 20)
    assert (sorted(first), sorted(second)) == ([0, 1], [2])
    assert stage.result(1) == first[1]
