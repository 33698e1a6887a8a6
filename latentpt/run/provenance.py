"""What runs were made with, and when, in words: for the heads of reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from latentpt.run.folder import RunFolder


def provenance(folders: Iterable[RunFolder]) -> dict[str, str]:
    """`trained` (dates), `hardware` and `versions` of runs, from their versions.json; what differs stands side by side.

    Runs of an earlier day may know less of themselves; what none knows is left out.
    """
    known = [json.loads(folder.versions.read_text()) for folder in folders if folder.versions.is_file()]
    dates = sorted(str(one["date"])[:10] for one in known if one.get("date"))
    found = {
        "trained": " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])),
        "hardware": _alternatives(_hardware(one) for one in known),
        "versions": _alternatives(_versions(one) for one in known),
    }
    return {name: said for name, said in found.items() if said}


def _alternatives(said: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(filter(None, said)))


def _hardware(one: dict[str, Any]) -> str:
    machine, processes = one.get("machine", {}), one.get("processes", 1)
    device = one.get("device", "")
    parts = [f"{processes} x {device}" if processes > 1 else device]
    if machine:
        parts.append(f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB")
    return ", ".join(filter(None, parts))


def _versions(one: dict[str, Any]) -> str:
    git = one.get("git")
    changed = " with changes" if one.get("git_changes") else ""
    parts = [f"latentpt at {git[:10]}{changed}"] if git else []
    parts += [f"Python {one['python']}"] if "python" in one else []
    parts += [f"{name} {version}" for name, version in one.get("packages", {}).items()]
    return ", ".join(parts)
