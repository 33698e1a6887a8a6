"""What was found on one chip, in one file that is whole at every moment, so that a cut loses nothing."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench.measure import Device, Row

ROOT = Path(__file__).resolve().parents[2]


def chip_name(device: str) -> str:
    """A device's name as that of a file."""
    return "-".join(device.lower().replace("/", " ").split())


def versions() -> dict[str, str]:
    """What the figures depend on."""
    import triton

    on_cuda = torch.cuda.is_available()
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version() if on_cuda else None),
        "triton": triton.__version__,
    }


def _commit() -> str:
    """The state of the sources, with a plus where they differ from it; results do not count."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", ":!docs"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


class Results:
    """One chip's file. It goes on from what the same versions left in it, and begins anew after others."""

    def __init__(self, folder: Path, chip: str) -> None:
        self.path = folder / f"{chip}.json"
        now: dict[str, Any] = {"device": None, "versions": versions(), "tests": {}, "rows": []}
        self.content = now
        if self.path.exists():
            old = json.loads(self.path.read_text())
            if old.get("versions") == now["versions"]:
                self.content = {**now, **old}

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """Test by test its outcome, seconds and, where it did not pass, the reason."""
        found: dict[str, dict[str, Any]] = self.content["tests"]
        return found

    def passed(self) -> list[str]:
        """Tests that need not run again."""
        return [name for name, found in self.tests.items() if found["outcome"] == "passed"]

    def measured(self, op: str) -> set[str]:
        """Cases of an operation that need not be measured again."""
        return {row["case"] for row in self.content["rows"] if row["op"] == op}

    def keep_tests(self, lines: Iterable[str]) -> None:
        """Outcomes, a JSON object a line, of which the last may be cut."""
        for line in lines:
            try:
                outcome = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.tests[outcome.pop("test")] = outcome
        self.write()

    def keep_rows(self, device: Device, rows: Iterable[Row], chosen: dict[str, str]) -> None:
        """The rows of one case."""
        self.content["device"] = asdict(device)
        self.content["rows"] += [asdict(row) for row in rows]
        self.content["chosen"] = {**self.content.get("chosen", {}), **chosen}
        self.write()

    def write(self) -> None:
        """The file, whole or not at all."""
        self.content["date"] = datetime.date.today().isoformat()
        self.content["command"] = "python " + " ".join(sys.argv)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)
