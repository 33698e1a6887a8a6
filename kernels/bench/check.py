"""make gpu-check: the tests that need a CUDA device, then every kernel beside torch, within a budget of time.

Everything found goes to FOLDER/<chip>.json as it is found. A run that was cut, by its budget or by anybody, is started
again and goes on: tests that passed and cases that were measured are left out, as long as the sources and the versions
of torch and Triton are the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES
from bench.options import read_options
from bench.results import ROOT, Results, chip_name

TESTS_SHARE = 0.6
"""Of the budget, at most, for the tests; the benchmarks have the rest."""
ENDING = 5.0
"""Seconds at the end for the report."""


def main() -> int:
    """0 if every test passed and every case was measured, 1 if not; ends with 2 as `read_options` does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=570, help="budget of time (default 570)")
    parser.add_argument(
        "--workers", type=int, default=4, help="processes that run tests (default 4; 0: this one's)"
    )
    options = read_options(
        parser, ROOT / "docs/results/gpu", "where DIR/<chip>.json is written (default docs/results/gpu)"
    )
    started = time.monotonic()
    chip = "cpu" if options.dry else chip_name(torch.cuda.get_device_name())
    results = Results(options.folder, chip)
    results.write()
    run_tests(results, options.seconds * TESTS_SHARE, options.workers)
    left = options.seconds - ENDING - (time.monotonic() - started)
    run_benchmarks(options.folder, left, options.dry)
    return report(Results(options.folder, chip))


def run_tests(results: Results, seconds: float, workers: int) -> None:
    """tests/gpu, without those that passed; what they leave in the log is kept even if they are cut."""
    with tempfile.TemporaryDirectory() as scratch:
        log, passed = Path(scratch) / "log.jsonl", Path(scratch) / "passed"
        passed.write_text("\n".join(results.passed()))
        env = {
            **os.environ,
            "LATENTPT_GPU_LOG": str(log),
            "LATENTPT_GPU_PASSED": str(passed),
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
            ),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/gpu",
            *(["-n", str(workers)] if workers else []),
        ]
        within(seconds, command, env)
        if log.exists():
            results.keep_tests(log.read_text().splitlines())


def run_benchmarks(folder: Path, seconds: float, dry: bool) -> None:
    """In a process of their own, which writes after every case: one that hangs costs no more than its time."""
    command = [sys.executable, str(ROOT / "kernels/bench/run.py"), "--folder", str(folder), "--go-on"]
    within(seconds, [*command, *(["--dry"] if dry else [])], dict(os.environ))


def within(seconds: float, command: list[str], env: dict[str, str]) -> None:
    """Run a command in the repository; when its time is over it is asked to end, then ended."""
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    try:
        process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        print(f"\n{seconds:.0f} seconds are over; what was found is kept", flush=True)
        process.terminate()
        try:
            process.wait(timeout=ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def report(results: Results) -> int:
    """What was found and what is missing, in a few lines."""
    counts = Counter(found["outcome"] for found in results.tests.values())
    print("\ntests: " + (", ".join(f"{n} {word}" for word, n in sorted(counts.items())) or "none"))
    for name, found in results.tests.items():
        if found["outcome"] == "failed":
            print(f"  failed: {name}\n    {found['reason']}")
    measured = [op for op in CASES if results.measured(op)]
    broken = [row for row in results.content["rows"] if row["ms"] is None]
    print(f"benchmarks: {len(measured)} of {len(CASES)} operations, {len(results.content['rows'])} rows")
    for row in broken:
        print(f"  does not run: {row['op']}, {row['case']}, {row['implementation']}: {row['note']}")
    print(f"written to {results.path}; run again, it goes on with what is missing or failed")
    ended = results.content.get("benchmarks_ended", False)
    return 0 if counts["passed"] and not counts["failed"] and ended else 1


if __name__ == "__main__":
    raise SystemExit(main())
