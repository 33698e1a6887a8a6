"""What a training says of itself: in state.json that it runs and how it ended, and at its end one line for programs.

result {"run": "runs/demo", "state": "finished", "exit_code": 0, "step": 1000, "steps": 1000, ...}
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from latentpt.files import write_text
from latentpt.run import RunFolder, read_metrics
from latentpt.run.exits import DONE, code_of
from latentpt.training.guard import TrainingDivergedError


def begun(folder: RunFolder, step: int, steps: int, ranks: int) -> None:
    """This process, the first of `ranks`, trains from `step` on."""
    here = {"pid": os.getpid(), "host": socket.gethostname(), "ranks": ranks}
    _keep(folder.state, {"state": "running", "step": step, "steps": steps, **here, "since": time.time()})


def ended(
    folder: RunFolder, error: BaseException | str | None, why: str | None, facts: dict[str, Any]
) -> str:
    """Note how the training has ended, and say it in one line.

    `error` is what it failed with, or the words of whoever ends it; `why` the reason for a stop before its end.
    """
    state = {"state": "finished" if why is None else "stopped", "exit_code": DONE, "reason": why}
    if error is not None:
        diverged = isinstance(error, TrainingDivergedError)
        words = str(error) or type(error).__name__
        state = {
            "state": "diverged" if diverged else "failed",
            "exit_code": code_of(error) if isinstance(error, BaseException) else 1,
            "reason": words,
        }
    told = {"run": str(folder.path), **state, **facts, **last_values(folder)}
    _keep(folder.state, told | {"until": time.time()})
    return f"result {json.dumps(told)}"


def last_values(folder: RunFolder) -> dict[str, Any]:
    """The last losses of a run's metrics, and its accuracy where that is measured; null where none is."""
    found: dict[str, Any] = {"train_loss": None, "validation_loss": None}
    for line in read_metrics(folder.metrics):
        if line["kind"] in ("train", "validation"):
            found[f"{line['kind']}_loss"] = line.get("loss")
            if "accuracy" in line:
                found["accuracy"] = line["accuracy"]
    return found


def _keep(path: Path, content: dict[str, Any]) -> None:
    try:
        write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        print(f"warning: {path} cannot be written ({error})", file=sys.stderr, flush=True)
