"""Tests for a machine with a CUDA device; skipped without one. They generate what they read.

kernels/bench/check.py runs them with LATENTPT_GPU_LOG, a file that gets a line for every outcome as it is known, and
LATENTPT_GPU_PASSED, a file with the names of tests that passed before.
"""

import json
import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    passed = os.environ.get("LATENTPT_GPU_PASSED")
    known = set(Path(passed).read_text().splitlines()) if passed else set()
    left_out = [item for item in items if item.nodeid in known]
    if left_out:
        items[:] = [item for item in items if item.nodeid not in known]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_runtest_logreport(report):
    log = os.environ.get("LATENTPT_GPU_LOG")
    if not log or os.environ.get("PYTEST_XDIST_WORKER") or (report.when != "call" and report.passed):
        return
    lines = report.longreprtext.strip().splitlines() if not report.passed else []
    errors = [line for line in lines if line.startswith("E ")] or lines[-1:]
    reason = errors[0].removeprefix("E").strip()[:300] if errors else ""
    outcome = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    with Path(log).open("a") as file:
        file.write(json.dumps({**outcome, **({"reason": reason} if reason else {})}) + "\n")


@pytest.fixture(autouse=True)
def fallbacks_are_errors(recwarn):
    """A kernel that quietly gave way to another would be tested by nobody."""
    yield
    gave_way = [str(w.message) for w in recwarn if "latentpt_kernels" in str(w.message)]
    assert not gave_way, gave_way
