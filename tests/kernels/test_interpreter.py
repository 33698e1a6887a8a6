"""Everything in interpreted/ holds in Triton's interpreter, in a process that has TRITON_INTERPRET=1 from its start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.timeout(1800)  # every kernel, as Python
def test_the_kernels_hold_in_the_interpreter():
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )
    print(answer.stdout[-3000:])
    assert answer.returncode == 0, answer.stdout[-8000:] + answer.stderr[-2000:]
    assert " passed" in answer.stdout
