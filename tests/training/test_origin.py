"""Where a training starts: the newest checkpoint whose files are what was written, chosen once for all ranks."""

import pytest

from latentpt.config import ConfigError
from latentpt.files import exclusive
from latentpt.run import checkpoints
from latentpt.run.command import Start
from latentpt.training.trainer import train
from tests.training.small import finish, losses, start_ranks, tiny_run

# One of two ranks whose seed is its rank; it ends well if that is refused.
OTHER_SEEDS = """
import os, sys
from pathlib import Path
from tests.training.small import tiny_run
from latentpt.config import ConfigError
from latentpt.training.trainer import train
try:
    train(tiny_run(Path(sys.argv[2]), Path(sys.argv[1]), seed=int(os.environ["RANK"])))
except ConfigError as error:
    assert str(error) == "rank 1 has seed = 1 where rank 0 has 0; start all ranks alike", error
else:
    sys.exit("was not refused")
"""


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def saved(config):
    return [path.name for path in sorted(config.folder.checkpoints.iterdir())]


def test_the_newest_intact_checkpoint_is_taken_loudly_and_the_damaged_one_is_kept(text, tmp_path, capfd):
    def run(name, **training):
        return tiny_run(tmp_path / name, text, checkpoint={"every": 2, "keep_last": 2}, training=training)

    whole, config = run("whole"), run("parts")
    train(whole)
    train(run("parts", stop_at=4))
    damaged = config.folder.checkpoints / "step-00000004" / "moments-00000-of-00001.safetensors"
    flip_a_byte(damaged)
    train(config)
    assert f"warning: {damaged} is damaged: its content is not what was written" in capfd.readouterr().err
    assert losses(config) == losses(whole)
    assert [name.partition(".")[0] for name in saved(config)] == [
        "step-00000004",
        "step-00000006",
        "step-00000008",
    ]
    assert saved(config)[0].startswith("step-00000004.set-aside-")


def test_without_an_intact_checkpoint_nothing_is_begun_anew_or_removed(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, training={"stop_at": 2}, checkpoint={"every": 1})
    train(config)
    for path in checkpoints.committed(config.folder.checkpoints):
        flip_a_byte(path / "weights-00000-of-00001.safetensors")
    before = sorted(config.folder.path.rglob("*"))
    with pytest.raises(
        ConfigError, match=r"none of the 2 checkpoints .* is intact .* --fresh sets the folder aside"
    ):
        train(tiny_run(tmp_path / "run", text))
    assert sorted(config.folder.path.rglob("*")) == before


@pytest.mark.parametrize("start", ["auto", "resume", "fresh"])
def test_two_trainings_in_one_folder_are_refused_and_the_next_may_start_when_the_first_has_ended(
    start, text, tmp_path
):
    config = tiny_run(tmp_path / "run", text, training={"stop_at": 1})
    train(config)
    before = sorted(tmp_path.rglob("*"))
    with (
        exclusive(config.folder.path),
        pytest.raises(ConfigError, match="is being trained by another process"),
    ):
        train(config, Start(start))
    assert sorted(tmp_path.rglob("*")) == before
    assert train(tiny_run(tmp_path / "run", text, training={"steps": 2}), Start(start)).step == 2


@pytest.mark.slow
def test_ranks_that_were_started_differently_are_refused_before_anything_is_written(text, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(OTHER_SEEDS)
    finish(start_ranks(2, script, text, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
