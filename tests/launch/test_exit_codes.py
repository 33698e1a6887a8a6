"""The exit codes of the scripts are those of docs/running.md's table."""

import importlib.util
import re
import signal
import subprocess
import sys
import time

import pytest

from latentpt.config import ConfigError, to_yaml
from latentpt.data.errors import DataError
from latentpt.run import exits
from latentpt.run.exits import exit_code
from tests.folders import LAUNCH
from tests.training.small import ROOT, environment, tiny_run, write_text_shards

SCRIPTS = sorted(path.stem for path in LAUNCH.glob("*.py"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_text_shards(folder, 20_000)
    return folder


def described():
    """Exit code -> what docs/running.md says of it."""
    table = (ROOT / "docs" / "running.md").read_text().split("| exit code |")[1].split("\n\n")[0]
    return {int(code): said for code, said in re.findall(r"^\| (\d+) \| (.*) \|$", table, re.MULTILINE)}


def run(script, *arguments):
    command = [sys.executable, str(LAUNCH / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def test_the_table_has_every_code_that_a_script_returns():
    assert set(described()) == {exits.DONE, exits.STOPPED, exits.REFUSED, exits.INTERRUPTED}


@pytest.mark.slow
def test_a_training_that_diverges_ends_with_the_code_of_the_table(tmp_path, text):
    config = tmp_path / "wild.yaml"
    wild = {"optimizer": {"lr": 1e30, "clip": 0}, "training": {"max_skipped": 2, "steps": 30}}
    config.write_text(to_yaml(tiny_run(tmp_path / "run", text, **wild)))
    ended = run("pretrain", "--config", config)
    (code,) = (code for code, said in described().items() if "diverged" in said)
    assert ended.returncode == code == 1
    assert "error: the gradients of the last 2 steps were not finite" in ended.stderr


@pytest.mark.parametrize("error", [ConfigError("no"), DataError("no")])
def test_what_cannot_work_is_one_line_of_one_rank(error, capsys, monkeypatch):
    def fails():
        raise error

    assert exit_code(fails) == 2 and capsys.readouterr().err == "error: no\n"
    monkeypatch.setenv("RANK", "1")
    assert exit_code(fails) == 2 and capsys.readouterr().err == ""


def test_ctrl_c_ends_a_command_without_a_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert exit_code(interrupted) == 130 and capsys.readouterr().err == "\n"


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_with_the_code_of_the_table(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys, runpy, time; sys.argv[:] = sys.argv[1:]; import latentpt.hub.source as s; "
         "s.open_source = lambda _: (print('here', flush=True), time.sleep(60)); "
         "runpy.run_path(sys.argv[0], run_name='__main__')", str(LAUNCH / "eval.py"), "--run", "x"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    (code,) = (code for code, said in described().items() if "Ctrl-C" in said)
    assert process.returncode == code and "Traceback" not in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_scripts_exit_codes_come_from_one_place(script):
    spec = importlib.util.spec_from_file_location(f"script_{script}", LAUNCH / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.exit_code is exit_code
