"""What a trained model saves and loses at each threshold."""

import pytest

from latentpt.benchmark.stopping import measure_thresholds, stopping_table
from latentpt.config import ConfigError
from tests.conftest import tiny_ids, tiny_model
from tests.folders import launch


@pytest.mark.parametrize("method", ["alcot", "ponder3", "latent"])
def test_a_higher_threshold_thinks_less_and_costs_less(method):
    model, batches = tiny_model(method=method, num_thoughts=2), [tiny_ids(4, 9), tiny_ids(4, 9, seed=1)]
    found = measure_thresholds(model, batches, [0.0, 0.5, 1.0], rows=2)
    thoughts = [one.sums.thoughts for one in found]
    assert thoughts[0] == 2 and thoughts[0] >= thoughts[1] >= thoughts[2] == 0
    assert found[0].flops > found[2].flops and all(one.tokens == 2 * 2 * 8 for one in found)
    assert len({one.sums.nats for one in found}) > 1
    lines = stopping_table(found).split("\n")
    assert len(lines) == 4 and lines[1].split()[0] == "0" and lines[1].endswith("1.00")


def test_a_model_without_thoughts_has_none_to_leave_out():
    with pytest.raises(ConfigError, match="has no thoughts that a token could leave out"):
        measure_thresholds(tiny_model(), [tiny_ids()], [0.5], rows=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--run", "nowhere"), "--run and --thresholds belong together"),
        (("--run", "nowhere", "--thresholds", "0,x"), "--thresholds 0,x must be numbers with commas between"),
        (("--config", "x.yaml", "--thresholds", "0"), "--run and --thresholds belong together"),
    ],
)
def test_the_command_refuses_in_one_sentence(monkeypatch, capsys, arguments, said):
    assert launch("bench", monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
