"""What is said before a training, and that nothing is left of it."""

import re

import numpy as np
import pytest

from latentpt.benchmark.dry_run import Where, dry_run
from latentpt.config import ConfigError, to_yaml
from latentpt.data.errors import DataError
from latentpt.data.opening import open_training
from latentpt.data.tokenizer import load_tokenizer
from latentpt.run.checkpoints import find
from latentpt.run.command import AUTO, Start
from latentpt.training.trainer import train
from tests.folders import launch, write_tokenizer
from tests.training.small import tiny_run, write_text_shards


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_text_shards(folder, 20_000)
    write_tokenizer(folder / "train")
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def values(told):
    """Name -> value of the lines of a dry run."""
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in told.splitlines() if line.strip())


def test_a_dry_run_tells_what_the_training_then_finds_and_writes_nothing(text, tmp_path, capsys):
    config = tiny_run(tmp_path / "run", text)
    told = values(dry_run(config, AUTO, Where(price=1.0)))
    assert files(tmp_path) == []
    train(config)
    introduction = capsys.readouterr().out
    assert told["parameters"].split()[0] in introduction
    assert f"{told['training FLOPs per token'].split()[0]} training FLOPs a token" in introduction
    assert f"({told['epochs']} epochs)" in introduction
    assert "measured here in real steps" in told["speed"] and told["cost"]
    saved = sum(path.stat().st_size for path in find(config.folder.checkpoints).glob("*.safetensors"))
    assert float(told["a checkpoint"].split()[0]) == pytest.approx(saved / 2**30, abs=0.01)


def test_the_first_batch_is_shown_as_text(text, tmp_path):
    config = tiny_run(tmp_path / "run", text)
    told = values(dry_run(config, AUTO, Where(devices=2)))
    ids = open_training(config.data).read(np.arange(1), config.seed)[0].tolist()
    beginning = load_tokenizer(text / "train").decode(ids)
    assert len(beginning) >= 8 and told["first batch"] == f"begins {beginning!r}"
    assert "2 devices are not here: give --mfu" in told["time"]


def test_a_training_that_goes_on_is_told_so_and_its_folder_stays_as_it_is(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, training={"stop_at": 3})
    train(config)
    before = files(tmp_path)
    told = values(dry_run(tiny_run(tmp_path / "run", text), AUTO, Where(devices=2)))
    assert told["training"].endswith("goes on from step-00000003")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("sections", "start", "error", "message"),
    [
        ({"model": {"vocab_size": 100}}, AUTO, DataError, "vocab"),
        ({"data": {"train": "nowhere"}}, AUTO, DataError, "nowhere"),
        ({"training": {"micro_batch": 3}}, AUTO, ConfigError, "nearest values that work"),
        ({"training": {"start_from": "nowhere"}}, AUTO, ConfigError, "nowhere"),
        ({}, Start("resume"), ConfigError, "no checkpoint to resume from"),
        ({"output": f"{__file__}/run"}, AUTO, ConfigError, "no folder that can be written"),
    ],
)
def test_what_a_training_would_refuse_a_dry_run_refuses(sections, start, error, message, text, tmp_path):
    with pytest.raises(error, match=message):
        dry_run(tiny_run(tmp_path / "run", text, **sections), start, Where(devices=1, mfu=0.5))
    assert files(tmp_path) == []


def test_what_does_not_fit_is_refused_after_everything_is_told(text, tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(tiny_run(tmp_path / "run", text)))
    given = ("pretrain", monkeypatch, "--config", file, "--dry-run", "--devices", 1, "--mfu", 0.5)
    assert launch(*given) == 0
    assert launch(*given, "--memory", 0.001) == 2
    said = capsys.readouterr().err
    assert "first batch" in said and "it does not fit" in said and "Traceback" not in said
    assert launch("pretrain", monkeypatch, "--config", file, "--mfu", 0.5) == 2
    assert files(tmp_path) == ["run.yaml"]
