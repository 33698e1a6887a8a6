"""One look at runs: finished, running or dead, how far, how fast, and what went wrong.

    python -m latentpt.status runs/demo runs/pythia-70m-stage1
    python -m latentpt.status runs/* --json                       one JSON object a line

Reads what trainings leave in their folders and changes nothing; a training may be running in them. Nothing here imports
torch, so the answer comes at once.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentpt.config import ConfigError
from latentpt.files import LOCK
from latentpt.pages.tables import duration
from latentpt.run import RunFolder
from latentpt.run.exits import exit_code
from latentpt.run.naming import committed, step_of

RECENT = 64
"""Lines of training that speed and time left are taken from."""
ELSEWHERE = 600.0
"""Seconds after which a training on another machine that has written nothing counts as dead."""


def status(run: str | Path) -> dict[str, Any]:
    """Everything that a run's folder says of its training, as plain data.

    state: running, finished, stopped (saved, on request), diverged, failed (`reason` says why), or dead (killed, without a
    word). seconds_left is null unless it runs and has been measured. Raises ConfigError for a folder that holds no run.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file() and not folder.state.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no {folder.config.name}")
    said = _read(folder.state)
    trained, others = read_tail(folder.metrics)
    validated = [line for line in others if line["kind"] == "validation" and line.get("loss") is not None]
    spikes = [line for line in others if line["kind"] == "spike"]
    last = (trained or validated or [{}])[-1]
    state, quiet = state_of(folder, said), _age(folder.metrics)
    steps = said.get("steps") or _read(folder.summary).get("step")
    pace = seconds_a_step(trained)
    step = max(last.get("step", 0), said.get("step", 0))
    left = pace * (steps - step) if pace is not None and steps is not None and state == "running" else None
    saved = committed(folder.checkpoints)
    return {
        "run": str(folder.path),
        "state": state,
        "reason": said.get("reason"),
        "held_by": {name: said.get(name) for name in ("pid", "host", "ranks")}
        if state == "running"
        else None,
        "step": step,
        "steps": steps,
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds"),
        "seconds_left": left,
        "seconds_since_last_line": quiet,
        "train_loss": last.get("loss") if trained else None,
        "validation": _place(validated[-1]) if validated else None,
        "best_validation": _place(min(validated, key=lambda line: line["loss"])) if validated else None,
        **{name: last.get(name) for name in ("lr", "grad_norm", "tokens_per_second", "mfu", "skipped")},
        **{name: last.get(name) for name in ("time/data", "device_gib", "host_gib")},
        "spikes": [line["at"] for line in spikes],
        "rewinds": sum(line["kind"] == "rewind" for line in others),
        "checkpoints": [step_of(path) for path in saved],
        "checkpoint_bytes": sum(file.stat().st_size for path in saved for file in path.iterdir()),
    }


def state_of(folder: RunFolder, said: dict[str, Any]) -> str:
    """Whether a training is in the folder, or how the last one has ended; `said` is its state.json."""
    lock = folder.path / LOCK
    if lock.exists() and locked(lock):
        return "running"
    state = said.get("state")
    if state == "running":  # it said so last
        away = said.get("host") != socket.gethostname()
        quiet = _age(folder.metrics)
        return "running" if away and quiet is not None and quiet < ELSEWHERE else "dead"
    if state is not None:
        return str(state)
    return "finished" if folder.summary.is_file() else "dead"


def locked(path: Path, table: Path = Path("/proc/locks")) -> bool:
    """Whether a process of this machine holds a lock on a file. Taking it to find out could keep a training from starting."""
    try:
        lines = table.read_text().splitlines()
        inode = str(path.stat().st_ino)
    except OSError:
        return False
    return any(line.split()[1] == "FLOCK" and line.split()[5].rpartition(":")[2] == inode for line in lines)


def read_tail(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The last lines of training, and all validations, spikes and rewinds of a metrics.jsonl; damaged ones are left out."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    trained = [line for line in lines if line.startswith(b'{"kind": "train"')][-RECENT:]
    wanted = tuple(b'{"kind": "%b"' % kind for kind in (b"validation", b"spike", b"rewind"))
    others = [line for line in lines if line.startswith(wanted)]
    return _parsed(trained), _parsed(others)


def seconds_a_step(trained: Sequence[dict[str, Any]]) -> float | None:
    """Pace over the last lines; None if there are not two."""
    if len(trained) < 2:
        return None
    steps = trained[-1]["step"] - trained[0]["step"]
    seconds: float = trained[-1]["seconds"] - trained[0]["seconds"]
    return seconds / steps if steps > 0 else None


def _parsed(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _age(path: Path) -> float | None:
    return max(0.0, time.time() - path.stat().st_mtime) if path.exists() else None


def _place(line: dict[str, Any]) -> dict[str, Any]:
    return {"loss": line["loss"], "step": line["step"]}


# ---------------------------------------------------------------------------------------------- in words


def in_words(found: dict[str, Any]) -> str:
    """A status as a few lines for people."""
    lines = [f"{found['run']}: {found['state']}{_who(found)}, {_how_far(found)}"]
    if found["reason"] and found["state"] != "running":
        lines.append(f"reason: {found['reason']}")
    lines += [_losses(found), _speed(found), _kept(found), _trouble(found)]
    return "\n  ".join(filter(None, lines))


def _who(found: dict[str, Any]) -> str:
    held = found["held_by"]
    if held is None or held["pid"] is None:
        return ""
    ranks = f", {held['ranks']} ranks" if held["ranks"] != 1 else ""
    return f" (process {held['pid']} on {held['host']}{ranks})"


def _how_far(found: dict[str, Any]) -> str:
    steps = found["steps"]
    of = f" of {steps:,} ({100 * found['step'] // steps} %)" if steps else ""
    left = f", {duration(found['seconds_left'])} left" if found["seconds_left"] is not None else ""
    return f"step {found['step']:,}{of}{left}"


def _losses(found: dict[str, Any]) -> str:
    parts = []
    if found["train_loss"] is not None:
        parts.append(f"training loss {found['train_loss']:.4f}")
    if (latest := found["validation"]) is not None:
        best = found["best_validation"]
        better = f" (best {best['loss']:.4f} at step {best['step']:,})" if best != latest else ""
        parts.append(f"validation loss {latest['loss']:.4f} at step {latest['step']:,}{better}")
    return ", ".join(parts)


def _speed(found: dict[str, Any]) -> str:
    parts = []
    if found["tokens_per_second"] is not None:
        parts.append(f"{found['tokens_per_second']:,.0f} tokens/s")
    if found["mfu"] is not None:
        parts.append(f"MFU {100 * found['mfu']:.1f} %")
    if found["time/data"] is not None:
        parts.append(f"{100 * found['time/data']:.0f} % waiting for data")
    for name, words in (("device_gib", "of the device"), ("host_gib", "of the host")):
        if found[name] is not None:
            parts.append(f"{found[name]:.1f} GiB {words}")
    if found["seconds_since_last_line"] is not None:
        parts.append(f"last line {duration(found['seconds_since_last_line'])} ago")
    return ", ".join(parts)


def _kept(found: dict[str, Any]) -> str:
    steps = found["checkpoints"]
    if not steps:
        return "no checkpoint"
    shown = ", ".join(f"{step:,}" for step in steps[-5:])
    more = f"{len(steps) - 5} and " if len(steps) > 5 else ""
    return f"checkpoints: {more}{shown} ({found['checkpoint_bytes'] / 2**30:.2f} GiB)"


def _trouble(found: dict[str, Any]) -> str:
    parts = []
    if found["skipped"]:
        parts.append(f"{found['skipped']} steps skipped")
    if spikes := found["spikes"]:
        parts.append(f"{len(spikes)} spikes, the last at step {spikes[-1]:,}")
    if found["rewinds"]:
        parts.append(f"went back {found['rewinds']} times")
    return ", ".join(parts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m latentpt.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of words")
    asked = parser.parse_args()

    def show() -> None:
        for run in asked.runs:
            found = status(run)
            print(json.dumps(found) if asked.json else in_words(found), flush=True)

    return exit_code(show)


if __name__ == "__main__":
    sys.exit(main())
