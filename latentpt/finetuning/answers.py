"""The answer in a text that a model wrote, and whether it is the right one."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Literal

Extraction = Literal["after_hash", "last_number"]
"""after_hash: what follows the last "#", or all of it (Coconut); last_number: the last number (LT-Tuning)."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def extract(text: str, how: Extraction) -> str | None:
    """The answer in a text; None if there is none."""
    if how == "after_hash":
        return text.split("#")[-1].replace(",", "").strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def is_right(text: str, gold: str, how: Extraction) -> bool:
    """Whether a text gives the answer `gold`: by the characters after_hash, by value last_number."""
    found = extract(text, how)
    if found is None:
        return False
    if how == "after_hash":
        return found == gold.replace(",", "").strip()
    wanted = extract(gold, how)
    try:
        return wanted is not None and Decimal(found) == Decimal(wanted)
    except InvalidOperation:
        return False
