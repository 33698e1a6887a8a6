"""Signals while a comparison runs: the training saves, the comparison stops, and nothing trains in a folder twice."""

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from latentpt.compare.running import launching
from latentpt.compare.running.launching import Stopping, exclusive, gpus_of, launch, launcher
from latentpt.config import ConfigError

# Starts, says so, and on SIGTERM takes a while to save.
TRAINER = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--config") + 1]).parent
rank = os.environ.get("RANK", "0")
def save(number, frame):
    time.sleep(float(os.environ["SAVING"]))
    (folder / f"saved{rank}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(folder / "pid").write_text(str(os.getpid()))
(folder / f"started{rank}").touch()
time.sleep(60)
"""
COMPARISON = """
import sys
from pathlib import Path
from latentpt.compare.running.launching import Interrupted, Stopping, exclusive, launch
folder = Path(sys.argv[1])
try:
    with exclusive(folder) as lock, Stopping(float(sys.argv[3])) as stopping:
        launch(folder / "trainer.py", folder / "run.yaml", int(sys.argv[2]), lock, stopping)
except Interrupted as stop:
    sys.exit(str(stop))
"""


def wait_for(path, seconds=30):
    until = time.time() + seconds
    while not path.exists():
        assert time.time() < until, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A function that starts a comparison with one training and returns its process once the training runs."""
    (tmp_path / "trainer.py").write_text(textwrap.dedent(TRAINER))
    started = []

    def start(ranks=1, saving=0.0, minutes=9.0):
        monkeypatch.setenv("SAVING", str(saving))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", COMPARISON, str(tmp_path), str(ranks), str(minutes)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        started.append(process)
        for rank in range(ranks):
            wait_for(tmp_path / f"started{rank}")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name
)
def test_a_signal_lets_the_training_save_and_ends_the_comparison(running, tmp_path, number):
    process = running()
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1 and f"stopped by {number.name}" in error
    assert (tmp_path / "saved0").exists()


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 1, [["0"], ["1"], ["2"], ["3"], ["0"]]),
        ("5,7", 1, [["5"], ["7"], ["5"]]),
        (None, 2, [["0", "1"], ["2", "3"], ["0", "1"]]),
        ("4,5,6,GPU-a", 2, [["4", "5"], ["6", "GPU-a"]]),
        ("", 1, [["0"], ["1"]]),
    ],
)
def test_trainings_side_by_side_have_gpus_of_their_own(monkeypatch, visible, count, expected):
    monkeypatch.setattr(launching, "devices", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpus_of(place, count) for place in range(len(expected))] == expected


def test_ranks_are_started_on_the_gpus_of_their_training_and_processes_without_gpus_are_as_many():
    _, _, world, *_ = launcher(["6", "7"])
    assert json.loads(base64.urlsafe_b64decode(world.partition("=")[2])) == {"localhost": ["6", "7"]}
    assert launcher(["3"]) == []
    assert len(gpus_of(0, 2)) == 2  # as on a machine without any


@pytest.mark.parametrize(("visible", "shown"), [("5,7", "7"), ("", "")])
def test_a_training_is_shown_its_gpu_and_none_where_they_are_hidden(monkeypatch, tmp_path, visible, shown):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    script = tmp_path / "show.py"
    script.write_text("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    log = tmp_path / "log"
    with exclusive(tmp_path / "claim") as lock, Stopping() as stopping:
        launch(script, tmp_path / "run.yaml", 1, lock, stopping, log, share=2, place=1)
    assert log.read_text() == shown + "\n"


def test_a_training_saves_when_its_time_is_up(running, tmp_path):
    process = running(minutes=0.2)
    _, error = process.communicate(timeout=40)
    assert process.returncode == 1 and "time is up; the same command continues" in error
    assert (tmp_path / "saved0").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_killed_comparison_leaves_no_training_behind_and_none_starts_beside_it(running, tmp_path):
    process = running(saving=1.0)
    process.kill()
    process.wait()
    with pytest.raises(ConfigError, match="still saves its state"), exclusive(tmp_path):
        pass
    wait_for(tmp_path / "saved0")
    trainer = int((tmp_path / "pid").read_text())
    for _ in range(500):
        if not Path(f"/proc/{trainer}").exists():
            break
        time.sleep(0.02)
    with exclusive(tmp_path):
        pass


@pytest.mark.slow
def test_every_rank_of_a_training_saves_before_the_comparison_ends(running, tmp_path):
    process = running(ranks=2, saving=0.5)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert "stopped by SIGTERM" in error
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()
