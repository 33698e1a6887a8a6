"""Trainings that are killed: by kill -9 at any moment, by SIGTERM under the launcher, in the middle of a save."""

import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from latentpt.config import ConfigError, to_yaml
from latentpt.run import checkpoints, load_model, read_metrics
from latentpt.run.command import Start
from latentpt.training import checkpoint, trainer
from latentpt.training.start import load_run_config
from latentpt.training.trainer import train
from tests.training.small import ROOT, environment, finish, free_port, losses, start_ranks, tiny_run

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
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    command += ["--master_port", str(free_port()), PRETRAIN]
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


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=450k none {folder} || exit 77
{train}; echo "exit code $?"
ls {folder}/run/checkpoints
mount -o remount,size=20m none {folder}
{train} && cp -r {folder}/run {copy}
"""


@pytest.mark.slow
def test_a_training_goes_on_while_the_disk_is_full_and_continues_from_the_last_good_checkpoint(
    text, tmp_path
):
    sections = {"checkpoint": {"every": 2}, "training": {"steps": 8}}
    whole, small = (tiny_run(tmp_path / name, text, **sections) for name in ("whole", "small/run"))
    train(whole)
    (tmp_path / "small").mkdir()
    command = f"{sys.executable} {PRETRAIN} --config {write_config(small, tmp_path / 'run.yaml')} 2>&1"
    script = ON_A_SMALL_DISK.format(folder=tmp_path / "small", copy=tmp_path / "copy", train=command)
    shell = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
    )
    if shell.returncode in (1, 77) and "exit code" not in shell.stdout:
        pytest.skip(f"this machine mounts no file systems for its users ({shell.stderr.strip()})")
    full, _, then = shell.stdout.partition("exit code ")
    assert then.startswith("2\nstep-00000002\n"), shell.stdout
    for step in (4, 6):
        assert f"step-{step:08d} could not be written" in full and "the training goes on" in full
    copy = tiny_run(tmp_path / "copy", text, **sections)
    assert shell.returncode == 0 and losses(copy) == losses(whole)


@pytest.mark.slow
def test_a_training_whose_output_is_no_longer_read_goes_on(text, tmp_path):
    config = tiny_run(tmp_path / "run", text)
    command = [sys.executable, PRETRAIN, "--config", write_config(config, tmp_path / "run.yaml")]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(60) == 0, told
    assert told.count("the console cannot be written") == 1
    assert config.folder.summary.exists()


def test_no_checkpoint_goes_while_steps_are_skipped_and_a_lower_rate_goes_on_from_before_them(
    text, tmp_path, monkeypatch
):
    sections = {"training": {"max_skipped": 3}, "checkpoint": {"every": 1, "keep_last": 1}}
    config = tiny_run(tmp_path / "run", text, **sections)
    finite, calls = trainer.training_loss, []

    def loss(model, tokens, schedule, *more):
        calls.append(None)
        step = (len(calls) - 1) // 4 + 1  # four micro-batches a step
        return finite(model, tokens, schedule, *more) * (float("nan") if step >= 5 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "training_loss", loss)
        with pytest.raises(ConfigError, match="last finite step was 4"):
            train(config)
    folder = config.folder.checkpoints
    assert [checkpoints.step_of(path) for path in checkpoints.committed(folder)] == [4, 5, 6]
    slower = tiny_run(tmp_path / "run", text, **sections, optimizer={"lr": 1e-3})
    assert train(slower, Start(step=4)).step == 8
    assert [checkpoints.step_of(path) for path in checkpoints.committed(folder)] == [8]
    assert sorted(path.name.partition(".set-aside")[0] for path in folder.iterdir()) == [
        f"step-0000000{n}" for n in (5, 6, 8)
    ]
    assert load_run_config(config.folder.earlier_config(4)).optimizer.lr == 1e-2
    changed = [line for line in read_metrics(config.folder.metrics) if line["kind"] == "changed"]
    assert [(line["step"], line["keys"]) for line in changed] == [(4, ["optimizer.lr"])]


def test_a_training_that_diverges_while_a_save_is_under_way_completes_it_before_it_lets_go(
    text, tmp_path, monkeypatch
):
    config = tiny_run(tmp_path / "run", text, training={"max_skipped": 1}, checkpoint={"every": 2})
    finite, save_file, calls = trainer.training_loss, checkpoint.save_file, []

    def loss(model, tokens, schedule, *more):
        calls.append(None)
        return finite(model, tokens, schedule, *more) * (float("nan") if len(calls) > 8 else 1.0)

    def save_slowly(tensors, path):
        time.sleep(0.5)
        save_file(tensors, path)

    monkeypatch.setattr(trainer, "training_loss", loss)
    monkeypatch.setattr(checkpoint, "save_file", save_slowly)
    with pytest.raises(ConfigError, match="last finite step was 2"):
        train(config)
    assert [path.name for path in config.folder.checkpoints.iterdir()] == ["step-00000002"]


def test_what_a_failed_save_left_behind_is_gone_when_the_next_one_is_written(text, tmp_path, monkeypatch):
    config = tiny_run(tmp_path / "run", text, training={"steps": 4}, checkpoint={"every": 2})
    save_file = checkpoint.save_file

    def save_or_fail(tensors, path):
        save_file(tensors, path)
        if "step-00000002" in str(path):
            raise OSError("the disk is full")

    monkeypatch.setattr(checkpoint, "save_file", save_or_fail)
    train(config)
    assert [path.name for path in config.folder.checkpoints.iterdir()] == ["step-00000004"]


# One of two ranks; the disk of the second is so full at step 2 that not even a note fits on it.
FULL_DISK = """
import os, sys
from pathlib import Path
from tests.training.small import tiny_run
from latentpt.training import checkpoint, trainer
save_file, write_text = checkpoint.save_file, checkpoint.write_text
def full(path):
    if os.environ["RANK"] == "1" and "step-00000002" in str(path):
        raise OSError("the disk is full")
checkpoint.save_file = lambda tensors, path: full(path) or save_file(tensors, path)
checkpoint.write_text = lambda path, text: full(path) or write_text(path, text)
limits = {"steps": 4, "patience": 30.0}
trainer.train(tiny_run(Path(sys.argv[2]), Path(sys.argv[1]), training=limits, checkpoint={"every": 2}))
"""


@pytest.mark.slow
def test_a_rank_that_cannot_even_say_so_keeps_no_other_waiting(text, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(FULL_DISK)
    first, _ = finish(start_ranks(2, script, text, tmp_path / "run"))
    assert "step-00000002 could not be written" in first and "the training goes on" in first
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]
    checkpoints.verify(folder / "step-00000004")


def test_a_checkpoint_without_its_mark_is_not_trained_over(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, training={"steps": 2})
    train(config)
    (config.folder.checkpoints / "step-00000002" / checkpoints.MARK).unlink()
    with pytest.raises(ConfigError, match="step-00000002, which lacks the mark of a finished checkpoint"):
        train(config)
    assert (config.folder.checkpoints / "step-00000002").exists()
    assert train(config, Start("fresh")).step == 2
