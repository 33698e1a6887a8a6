"""kill -9 of a rank at random moments, and data that go away while they are read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentpt.data.errors import DataError
from latentpt.run.checkpoints import MARK, find
from latentpt.training import trainer
from latentpt.training.trainer import train
from tests.training.killed_ranks import STEPS, run_of
from tests.training.small import environment, losses, tiny_run

PROGRAM = Path(__file__).with_name("killed_ranks.py")
KILLS = 20


@pytest.mark.slow
def test_twenty_kills_of_a_rank_at_random_moments_lose_nothing_that_was_committed(text, tmp_path):
    command = [sys.executable, str(PROGRAM), text, tmp_path, str(KILLS), "0"]
    with (tmp_path / "log").open("w") as log:
        ended = subprocess.run(command, env=environment(), stdout=log, stderr=subprocess.STDOUT, timeout=600)
    said = (tmp_path / "log").read_text()
    assert ended.returncode == 0, said[-5000:]
    events = [json.loads(line) for line in said.splitlines() if line.startswith('{"rank"')]
    assert len(events) == KILLS and {event["rank"] for event in events} == {0, 1}
    for event in events:
        assert event["after"] >= event["saved"], "a committed checkpoint is gone"
        assert event["other"] == 1 and event["seconds"] < 30, "the other rank did not end by itself"
    whole, killed = (run_of(tmp_path / name, text) for name in ("whole", "killed"))
    assert losses(killed) == losses(whole) and len(losses(whole)) == STEPS
    marks = [json.loads((find(run.folder.checkpoints) / MARK).read_text()) for run in (whole, killed)]
    weights = [{name: of for name, of in mark.items() if name.endswith(".safetensors")} for mark in marks]
    assert weights[0] == weights[1] and weights[0]


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_shard_that_goes_away_while_it_is_read_changes_nothing(what, text, tmp_path, monkeypatch):
    data = shutil.copytree(text, tmp_path / "data")
    whole, config = tiny_run(tmp_path / "whole", text), tiny_run(tmp_path / "run", data)
    train(whole)
    finite, calls = trainer.training_loss, []

    def loss(*given):
        calls.append(None)
        if len(calls) == 6:
            for shard in data.glob("train*.bin"):
                other = shard.with_suffix(".new")
                other.write_bytes(bytes(shard.stat().st_size))
                other.replace(shard)
                if what == "deleted":
                    shard.unlink()
        return finite(*given)

    monkeypatch.setattr(trainer, "training_loss", loss)
    train(config)
    assert losses(config) == losses(whole)
    if what == "deleted":
        with pytest.raises(DataError):
            train(config)
