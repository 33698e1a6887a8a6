"""One look at runs, by what they leave in their folders."""

import json
import os
import socket
import subprocess
import sys

import pytest

from latentpt.config import ConfigError
from latentpt.files import exclusive
from latentpt.status import in_words, locked, status


def make_run(folder, state, lines=()):
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def line(step, kind="train", **values):
    place = {"kind": kind, "step": step, "tokens": 100 * step, "training_flops": 1.0, "seconds": 2.0 * step}
    return {**place, "loss": 5.0 - step / 100, **values}


RUNNING = {"state": "running", "step": 0, "steps": 100, "pid": 1, "host": socket.gethostname(), "ranks": 2}
LINES = [
    *(line(step, tokens_per_second=50.0, mfu=0.4, skipped=1) for step in range(1, 41)),
    {"kind": "layers", "step": 40, "gradient/head": 1.0},
    line(40, "validation", loss=4.5),
    line(40, "spike", at=38, value=9.0, mean_before=5.0),
]


def test_a_running_training_is_told_with_its_speed_and_the_time_left(tmp_path):
    run = make_run(tmp_path / "run", RUNNING, LINES)
    (run / "checkpoints" / "step-00000030").mkdir(parents=True)
    (run / "checkpoints" / "step-00000030" / "COMMIT").write_text("{}")
    (run / "checkpoints" / "step-00000040.tmp").mkdir()
    with exclusive(run):
        found = status(run)
    assert (found["state"], found["step"], found["steps"], found["seconds_left"]) == (
        "running",
        40,
        100,
        120.0,
    )
    assert found["checkpoints"] == [30] and found["spikes"] == [38] and found["skipped"] == 1
    assert found["validation"] == {"loss": 4.5, "step": 40} and found["train_loss"] == 4.6
    words = in_words(found)
    assert "running (process 1 on" in words and "2 ranks), step 40 of 100 (40 %), 2.0 min left" in words
    assert "50 tokens/s, MFU 40.0 %" in words and "1 spikes, the last at step 38" in words


def test_one_that_was_killed_is_dead_and_one_on_another_machine_lives_while_it_writes(tmp_path):
    assert status(make_run(tmp_path / "here", RUNNING, LINES))["state"] == "dead"
    away = make_run(tmp_path / "away", RUNNING | {"host": "elsewhere"}, LINES)
    assert status(away)["state"] == "running"
    os.utime(away / "metrics.jsonl", (0, 0))
    assert status(away)["state"] == "dead"


def test_how_a_training_has_ended_is_told_with_the_reason(tmp_path):
    state = {"state": "diverged", "reason": "the gradients were not finite", "step": 12, "steps": 100}
    found = status(make_run(tmp_path / "run", state))
    assert (found["state"], found["step"], found["seconds_left"]) == ("diverged", 12, None)
    assert "reason: the gradients were not finite" in in_words(found)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        status(tmp_path)


def test_a_damaged_line_or_state_hides_nothing_else(tmp_path):
    run = make_run(tmp_path / "run", {}, LINES)
    (run / "state.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ste\n{"kind": "train", "st')
    found = status(run)
    assert (found["state"], found["step"], found["train_loss"]) == ("dead", 40, 4.6)


def test_only_a_lock_that_is_held_counts(tmp_path):
    with exclusive(tmp_path):
        assert locked(tmp_path / ".lock")
    assert not locked(tmp_path / ".lock")


def test_the_command_answers_without_torch(tmp_path):
    run = make_run(tmp_path / "run", {"state": "stopped", "reason": "SIGTERM"}, LINES)
    code = (
        "import sys, runpy; sys.argv = ['status', sys.argv[1], '--json']\n"
        "try: runpy.run_module('latentpt.status', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout)["reason"] == "SIGTERM"
