"""Several processes fine-tune what one does, whatever ZeRO divides."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentpt.config import to_yaml
from latentpt.finetuning.reasoner import load_reasoner
from latentpt.run import read_metrics
from tests.finetuning.small_reasoning import sums, tiny
from tests.training.small import environment, finish, start_ranks

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return sums(tmp_path_factory.mktemp("sums"))


def run(config, world):
    path = config.folder.path.with_suffix(".yaml")
    path.write_text(to_yaml(config))
    command = [ROOT / "launch" / "finetune.py", "--config", path]
    if world == 1:
        subprocess.run([sys.executable, *command], check=True, env=environment(), timeout=300)
    else:
        finish(start_ranks(world, *command), 300)
    lines = read_metrics(config.folder.metrics)
    return (
        [line["loss"] for line in lines if line["kind"] == "train"],
        [(line["accuracy"], line["rows"]) for line in lines if line["kind"] == "validation"],
        dict(load_reasoner(config.folder.path / "best")[0].named_parameters()),
    )


@pytest.mark.parametrize(
    ("mode", "stage", "lora"),
    [("coconut", 0, 0), ("coconut", 1, 0), ("lt_tuning", 2, 0), ("coconut", 3, 2), ("lt_tuning", 3, 0)],
)
def test_ranks_and_zero_stages_train_the_same_model(mode, stage, lora, data, tmp_path):
    training = {"micro_batch": 2, "lora": {"rank": lora, "alpha": 4.0}}
    options = {"training": training, "coconut": {"uniform_prob": 0.5}, "optimizer": {"lr": 1e-3}}
    expected = run(tiny(tmp_path / "one", data, mode, **options, zero={"stage": 0}), 1)
    found = run(tiny(tmp_path / "two", data, mode, **options, zero={"stage": stage}), 2)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert [rows for _, rows in found[1]] == [rows for _, rows in expected[1]]
    for name, parameter in expected[2].items():
        torch.testing.assert_close(found[2][name], parameter, atol=2e-4, rtol=1e-3)
