"""A processor that announces AMX: tried once in a process of its own, capped where that dies."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentpt import cpu

ROOT = Path(__file__).resolve().parents[1]
ENTRANCES = [
    *sorted((ROOT / "launch").glob("*.py")),
    ROOT / "data_prep" / "__main__.py",
    ROOT / "tests" / "conftest.py",
]
AMX = "processor : 0\nflags : fpu avx2 avx512f amx_bf16 amx_tile\n"

# Torch on a machine that traps AMX: a product dies unless oneDNN is capped low enough. It counts how often it is tried.
TRAP = """
import os, signal
bfloat16 = None
with open(os.environ["TRIES"], "a") as tries:
    tries.write("x")
class Matrix:
    def __matmul__(self, other):
        if str(os.environ.get("ONEDNN_MAX_CPU_ISA")) not in os.environ["LIVES"].split():
            os.kill(os.getpid(), signal.SIGILL)
def ones(*shape, dtype):
    return Matrix()
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts Python with a torch that dies except under `lives`; returns the process that has ended."""
    (tmp_path / "torch.py").write_text(TRAP)
    (tmp_path / "cpuinfo").write_text(AMX)
    code = (
        "import os, pathlib, sys; from latentpt import cpu; "
        f"cpu.guard(pathlib.Path({str(tmp_path / 'cpuinfo')!r})); "
        "assert 'torch' not in sys.modules; print(os.environ.get('ONEDNN_MAX_CPU_ISA'))"
    )

    def run(lives, **variables):
        inherited = {
            name: value for name, value in os.environ.items() if name not in (cpu.VARIABLE, "LOCAL_RANK")
        }
        environment = {
            **inherited, "PYTHONPATH": f"{tmp_path}:{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "TRIES": str(tmp_path / "tries"), "LIVES": lives, **variables,
        }  # fmt: skip
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    return run


def tries(tmp_path):
    path = tmp_path / "tries"
    return len(path.read_text()) if path.exists() else 0


def test_a_trapped_product_caps_onednn_with_one_line_and_is_tried_once(start, tmp_path):
    first = start("AVX512_CORE_FP16 AVX512_CORE_BF16")
    assert first.stdout == "AVX512_CORE_FP16\n" and first.returncode == 0
    assert first.stderr.count("\n") == 1 and "ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16" in first.stderr
    assert tries(tmp_path) == 2  # without a cap it died, with the first it lived
    assert start("").stdout == "AVX512_CORE_FP16\n" and tries(tmp_path) == 2


def test_the_fastest_cap_that_lives_is_taken(start):
    assert start("AVX512_CORE_BF16 AVX2").stdout == "AVX512_CORE_BF16\n"


def test_a_product_that_lives_needs_no_cap_and_is_tried_once(start, tmp_path):
    for _ in range(2):
        healthy = start("None")  # as the trap sees a variable that is not set
        assert (healthy.stdout, healthy.stderr) == ("None\n", "")
    assert tries(tmp_path) == 1


def test_where_every_cap_dies_nothing_is_said_and_nothing_kept(start, tmp_path):
    for round in (1, 2):
        assert start("").stdout == "None\n"
        assert tries(tmp_path) == round * (1 + len(cpu.CAPS))


def test_a_cap_of_the_users_is_left_alone_and_nothing_is_tried(start, tmp_path):
    assert start("", ONEDNN_MAX_CPU_ISA="AVX2").stdout == "AVX2\n"
    assert tries(tmp_path) == 0


def test_a_processor_without_amx_is_not_tried(start, tmp_path):
    (tmp_path / "cpuinfo").write_text(AMX.replace("amx_bf16", ""))
    assert start("").stdout == "None\n" and tries(tmp_path) == 0
    (tmp_path / "cpuinfo").unlink()
    assert start("").stdout == "None\n" and tries(tmp_path) == 0


def test_only_the_first_process_of_a_training_says_so(start):
    assert start("AVX2", LOCAL_RANK="0").stderr and not start("AVX2", LOCAL_RANK="1").stderr


def test_another_machine_and_a_cache_that_makes_no_sense_are_tried_anew(start, tmp_path):
    start("AVX2")
    kept = tmp_path / "cache" / "latentpt" / "cpu.json"
    assert list(json.loads(kept.read_text()).values()) == ["AVX2"]
    (tmp_path / "cpuinfo").write_text(AMX.replace("avx2", "avx2 avx512_fp16"))
    assert start("AVX512_CORE").stdout == "AVX512_CORE\n"
    kept.write_text("{")
    assert start("AVX512_CORE_BF16").stdout == "AVX512_CORE_BF16\n"


def test_a_home_that_cannot_be_written_to_costs_only_another_try(start, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert start("AVX2").stdout == start("AVX2").stdout == "AVX2\n"
    assert tries(tmp_path) == 10


def test_the_product_that_is_tried_is_one_of_the_real_torch_and_lives_here_under_what_the_tests_run_with():
    assert cpu.survives(os.environ.get(cpu.VARIABLE, "")) is True


def test_death_by_another_cause_says_nothing_about_the_processor(monkeypatch):
    for cause, outcome in (("SIGILL", False), ("SIGKILL", None)):
        monkeypatch.setattr(cpu, "PRODUCT", f"import os, signal; os.kill(os.getpid(), signal.{cause})")
        assert cpu.survives("") is outcome


@pytest.mark.parametrize("path", ENTRANCES, ids=lambda path: path.name)
def test_every_way_in_imports_a_module_of_ours_before_any_other(path):
    """Then the guard comes before torch, whoever imports it."""
    modules = []
    for node in ast.parse(path.read_text()).body:
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
    foreign = [
        name.partition(".")[0] for name in modules if name.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert foreign[0] == "latentpt"
