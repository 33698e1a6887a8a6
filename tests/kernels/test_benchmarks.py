"""The benchmarks and gpu-check run from end to end at tiny sizes on a CPU, and go on where they were cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = {"block_attention", "linear_cross_entropy", "add_norm", "rotate_qk", "latent_shift", "decode"}


def run(program, *options):
    """A benchmark as a user starts it: what pytest told this process is not for the one that the benchmark starts."""
    command = [sys.executable, ROOT / "kernels/bench" / program, "--dry", *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def test_a_dry_run_times_every_operation_and_writes_one_file(tmp_path):
    answer = run("run.py", "--folder", tmp_path / "gpu")
    assert answer.returncode == 0, answer.stderr[-3000:]
    content = json.loads((tmp_path / "gpu/cpu.json").read_text())
    assert {row["op"] for row in content["rows"]} == OPERATIONS
    assert all(row["ms"] > 0 for row in content["rows"])
    assert (
        {"commit", "torch", "triton"} <= content["versions"].keys() and content["date"] and content["command"]
    )
    assert answer.stdout.count("| case | implementation |") == len(OPERATIONS)


@pytest.mark.slow
def test_gpu_check_keeps_tests_and_figures_and_goes_on_with_what_is_missing(tmp_path):
    path = tmp_path / "cpu.json"
    answer = run("check.py", "--folder", tmp_path, "--workers", "0")
    content = json.loads(path.read_text())
    outcomes = [found["outcome"] for found in content["tests"].values()]
    assert set(outcomes) == {"skipped"} and len(outcomes) > 50, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert f"{len(outcomes)} skipped" in answer.stdout
    assert {row["op"] for row in content["rows"]} == OPERATIONS
    assert answer.returncode == 1  # nothing passed

    lost = "rotate_qk"
    name, other, *_ = content["tests"]
    content["rows"] = [row for row in content["rows"] if row["op"] != lost]
    before = {row["op"]: row["ms"] for row in content["rows"]}
    content["tests"] = {
        name: {"outcome": "passed", "seconds": 1.0},
        other: {"outcome": "failed", "reason": "E"},
    }
    path.write_text(json.dumps(content))
    run("check.py", "--folder", tmp_path, "--workers", "0")
    again = json.loads(path.read_text())
    assert again["tests"][name]["outcome"] == "passed" and again["tests"][other]["outcome"] == "skipped"
    assert len(again["tests"]) == len(outcomes)
    after = {row["op"]: row["ms"] for row in again["rows"]}
    assert after.pop(lost) > 0 and after == before


@pytest.mark.parametrize("program", ["run.py", "check.py"])
def test_without_a_device_they_say_how_to_run_all_the_same(program):
    command = [sys.executable, ROOT / "kernels/bench" / program]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert answer.returncode == 2 and not answer.stdout
    assert answer.stderr == "there is no CUDA device; --dry runs the code at tiny sizes on the CPU\n"


def test_results_of_other_versions_are_not_mixed_with_these(tmp_path):
    path = tmp_path / "cpu.json"
    path.write_text(
        json.dumps({"versions": {"torch": "1.0"}, "tests": {}, "rows": [{"op": "decode", "case": "old"}]})
    )
    assert run("run.py", "--folder", tmp_path, "--go-on", "--only", "rotate_qk").returncode == 0
    assert {row["op"] for row in json.loads(path.read_text())["rows"]} == {"rotate_qk"}


def test_gpu_check_ends_within_its_budget_and_keeps_what_was_found(tmp_path):
    answer = run("check.py", "--folder", tmp_path, "--workers", "0", "--seconds", "1")
    assert answer.returncode == 1
    assert "seconds are over; what was found is kept" in answer.stdout
    assert {"tests", "rows", "versions"} <= json.loads((tmp_path / "cpu.json").read_text()).keys()
