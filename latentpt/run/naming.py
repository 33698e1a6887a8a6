"""How finished checkpoints are named and found. Nothing here imports torch."""

from __future__ import annotations

import re
from pathlib import Path

MARK = "COMMIT"
META = "meta.json"
NAME = re.compile(r"step-(\d{8,})")


def committed(folder: Path) -> list[Path]:
    """Finished checkpoints under `folder`, oldest first."""
    found = (mark.parent for mark in folder.glob(f"*/{MARK}"))
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Steps that had been trained when a checkpoint was written."""
    return int(path.name.removeprefix("step-"))
