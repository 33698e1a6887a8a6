"""Numbers with prefixes and tables in three forms."""

import pytest

from latentpt.pages.document import table
from latentpt.pages.tables import duration, markdown_table, quantity, text_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7.00"),
        (999, "999"),
        (999.7, "1.00 k"),
        (1234, "1.23 k"),
        (23.44e6, "23.4 M"),
        (2.18e20, "218 E"),
    ],
)
def test_quantities_have_three_digits_and_a_prefix(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.4, "42 s"), (210, "3.5 min"), (7560, "2.1 h"), (345600, "4.0 d")]
)
def test_durations_are_said_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_text_columns_are_aligned():
    lines = text_table(["arm", "loss"], [["vanilla", "3.1"], ["x", "12.25"]]).splitlines()
    assert lines == ["arm       loss", "-------  -----", "vanilla    3.1", "x        12.25"]


def test_markdown_and_html_hold_every_cell_and_html_is_escaped():
    assert "| x | 2 |" in markdown_table(["a", "b"], [["x", "2"]])
    assert "<td>&lt;b&gt;</td>" in table(["a"], [["<b>"]])
