"""Values that the commands take."""

from __future__ import annotations

import argparse

import pytest

from data_prep.commands.arguments import amount, share, task, unescaped


def test_amounts_shares_tasks_and_escapes_are_read() -> None:
    assert [amount(text) for text in ("4096", "1.5G", "500m")] == [4096, 1_500_000_000, 500_000_000]
    assert [share(text) for text in ("0.1%", "0.001", "100%")] == [0.001, 0.001, 1.0]
    assert task("3/16") == (3, 16)
    assert unescaped(r"\n\n") == "\n\n"
    assert unescaped("é—\\t") == "é—\t"


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (amount, "0"),
        (amount, "5X"),
        (amount, ""),
        (share, "101%"),
        (share, "few"),
        (task, "16/16"),
        (task, "3"),
    ],
)
def test_what_makes_no_sense_is_refused(read: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read(text)  # type: ignore[operator]
