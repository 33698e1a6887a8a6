"""Trainings that are killed: by kill -9 at any moment, by SIGTERM under the launcher, in the middle of a save."""

import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from latentpt.config import to_yaml
from latentpt.run import checkpoints, load_model
from latentpt.training import checkpoint
from latentpt.training.trainer import train
from tests.training.small import ROOT, environment, losses, tiny_run

PRETRAIN = str(ROOT / "launch" / "pretrain.py")


def write_config(config, path):
    path.write_text(to_yaml(config))
    return str(path)


def wait_for_lines(config, count, process, seconds=120):
    """Wait until the training has written `count` lines of metrics, or has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if config.folder.metrics.exists() and len(config.folder.metrics.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    assert process.poll() is not None, "the training wrote no metrics in time"


@pytest.mark.slow
def test_a_training_killed_at_random_moments_gives_the_losses_of_one_never_killed(text, tmp_path):
    sections = {"training": {"steps": 60}, "checkpoint": {"every": 1, "keep_last": 1}}
    whole, killed = (tiny_run(tmp_path / name, text, **sections) for name in ("whole", "killed"))
    train(whole)
    command = [sys.executable, PRETRAIN, "--config", write_config(killed, tmp_path / "run.yaml")]
    moments = random.Random(0)
    for attempt in range(2):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        wait_for_lines(killed, 8 + 24 * attempt, process)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()  # with a checkpoint every step, often in the middle of one
        process.wait()
    assert not killed.folder.summary.exists()
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert losses(killed) == losses(whole)
    assert losses(killed, "validation") == losses(whole, "validation")


@pytest.mark.slow
def test_sigterm_under_the_launcher_saves_the_step_on_all_ranks(text, tmp_path):
    """The launcher signals one rank after the other, each with 30 seconds of grace: all must stop at the first."""
    sections = {"training": {"steps": 60, "batch_samples": 4}, "validation": {"every": 60}}
    config = tiny_run(tmp_path / "run", text, **sections)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", PRETRAIN]
    command += ["--config", write_config(config, tmp_path / "run.yaml")]
    runner = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_lines(config, 5, runner)
    nodes = [
        p
        for p in psutil.Process(runner.pid).children(recursive=True)
        if "deepspeed.launcher.launch" in p.cmdline()
    ]
    began = time.monotonic()
    nodes[0].send_signal(signal.SIGTERM)
    output, _ = runner.communicate(timeout=120)
    assert time.monotonic() - began < 25, "a rank was killed after its grace"
    step = int(checkpoints.find(config.folder.checkpoints).name.removeprefix("step-"))
    assert 5 <= step < 60
    assert f"stopped at step {step} of 60 (SIGTERM)" in output
    train(config)
    alone = tiny_run(tmp_path / "alone", text, **sections)
    train(alone)
    assert losses(config) == pytest.approx(losses(alone), abs=2e-5)


@pytest.mark.parametrize("crash_at", ["weights-", "moments-", "meta.json", "rename", "COMMIT"])
def test_a_crash_within_a_save_leaves_the_checkpoint_before_it(crash_at, text, tmp_path, monkeypatch):
    config = tiny_run(tmp_path / "run", text, training={"steps": 4}, checkpoint={"every": 2})
    train(tiny_run(tmp_path / "run", text, training={"steps": 4, "stop_at": 2}))
    save_file, write_text = checkpoint.save_file, checkpoint.write_text

    def crash(path):
        if path.name.startswith(crash_at):
            raise KeyboardInterrupt  # nothing of ours catches it

    def save_or_crash(tensors, path):
        crash(path)
        save_file(tensors, path)

    def write_or_crash(path, content):
        crash(path)
        write_text(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_or_crash)
        patch.setattr(checkpoint, "write_text", write_or_crash)
        if crash_at == "rename":
            patch.setattr(checkpoint.Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    folder = config.folder.checkpoints
    assert [path.name for path in checkpoints.committed(folder)] == ["step-00000002"]
    load_model(config.folder.path)
    train(config)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]
