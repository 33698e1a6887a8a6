"""Going back to before a spike of the loss, and on past the data that was read since.

How often a training has done so, and which sample came next, lies in its folder: a process that is killed before the next
checkpoint goes on from the one before the spike and would otherwise read the same data again.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from latentpt.config import ConfigError, Section
from latentpt.files import write_text


class Rewind(Section):
    """One time that a training went back."""

    to: int
    """Step of the checkpoint that it went back to."""
    at: int
    """Step whose loss was the spike."""
    seen: int
    """Step after which it was noticed."""
    samples: int
    """Samples read until then: the first sample after `to` is this one."""


REWINDS = TypeAdapter(list[Rewind])


def read_rewinds(path: Path, step: int) -> list[Rewind]:
    """Those that a training which goes on at `step` has behind it, oldest first; raises ConfigError for a damaged file."""
    if not path.is_file():
        return []
    try:
        found = REWINDS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(
            f"{path} is damaged ({error.errors()[0]['msg']}); without it the training goes on as if it had never gone back"
        ) from None
    return [rewind for rewind in found if rewind.to <= step]


def write_rewinds(path: Path, rewinds: list[Rewind]) -> None:
    """Keep them."""
    write_text(path, json.dumps([rewind.model_dump() for rewind in rewinds], indent=1) + "\n")


def samples_at(rewinds: list[Rewind], step: int, samples: int) -> int:
    """Samples that count as read where a training goes on from the checkpoint of `step`, which says `samples`."""
    return max([samples, *(rewind.samples for rewind in rewinds if rewind.to == step)])
