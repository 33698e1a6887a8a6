"""launch/pretrain.py as a user meets it; other tests train through it."""

import subprocess
import sys

import pytest
import yaml

from latentpt.config import to_yaml
from tests.training.small import ROOT, environment, tiny_run


def pretrain(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "pretrain.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@pytest.fixture
def file(tmp_path, text):
    path = tmp_path / "small.yaml"
    path.write_text(to_yaml(tiny_run(tmp_path / "run", text)))
    return path


def test_help_and_print_config_need_no_torch(file, monkeypatch):
    assert "optimizer.lr  (a positive number; default 0.0003)" in pretrain("--help").stdout
    code = "import sys, runpy; sys.argv = sys.argv[1:]; sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    script = ROOT / "launch" / "pretrain.py"
    arguments = [sys.executable, "-c", code, script, "--config", file, "optimizer.lr=3e-4", "--print-config"]
    printed = subprocess.run(
        list(map(str, arguments)), env=environment(), capture_output=True, text=True
    ).stdout
    assert yaml.safe_load(printed)["optimizer"]["lr"] == 3e-4


def test_what_is_wrong_is_one_sentence_and_exit_code_2_and_nothing_is_written(file, tmp_path):
    for override, message in (
        ("optimizer.lrr=1", "unknown key optimizer.lrr; did you mean optimizer.lr?"),
        ("thoughts.method=latnet", "the nearest method is latent"),
    ):
        result = pretrain("--config", file, override)
        assert result.returncode == 2
        assert result.stderr.splitlines()[-1].startswith("error: ") and message in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
