"""The benchmarks run from end to end at tiny sizes on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_times_every_operation_and_writes_one_file(tmp_path):
    command = [sys.executable, ROOT / "kernels/bench/run.py", "--dry", "--folder", tmp_path / "gpu"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    content = json.loads((tmp_path / "gpu/cpu.json").read_text())
    operations = {row["op"] for row in content["rows"]}
    assert operations == {
        "block_attention",
        "linear_cross_entropy",
        "add_norm",
        "rotate_qk",
        "latent_shift",
        "decode",
    }
    assert all(row["ms"] > 0 for row in content["rows"])
    assert {"date", "torch", "triton", "command"} <= content["versions"].keys()
    assert answer.stdout.count("| case | implementation |") == len(operations)
