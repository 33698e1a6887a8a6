"""The table of sizes in docs/running.md is what the program prints."""

import pytest

from latentpt.benchmark import sizes
from tests.docs.commands import ROOT

SHOWN = [line for line in (ROOT / "docs" / "running.md").read_text().splitlines() if line.startswith("| ")]


def test_the_table_has_every_size_with_all_thoughts():
    begin = SHOWN.index(sizes.HEAD.text) + 1
    rows = SHOWN[begin : begin + len(sizes.DEVICES) * len(sizes.THOUGHTS)]
    assert [tuple(row.split(" | ")[:2]) for row in rows] == [
        (f"| {size}", thoughts) for size in sizes.DEVICES for thoughts in sizes.THOUGHTS
    ]


@pytest.mark.parametrize("thoughts", sizes.THOUGHTS)
def test_the_smallest_size_takes_what_the_table_says(thoughts):
    assert sizes.row("70m", thoughts).text in SHOWN


@pytest.mark.slow
@pytest.mark.parametrize("size", [size for size in sizes.DEVICES if size != "70m"])
def test_every_size_takes_what_the_table_says(size):
    assert sizes.row(size, "N = 1, stage_causal").text in SHOWN
