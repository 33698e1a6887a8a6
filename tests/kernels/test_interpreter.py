"""The files in interpreted/ hold in Triton's interpreter, each in a process that has TRITON_INTERPRET=1 from its start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_file_passes_in_the_interpreter(file):
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout[-8000:] + answer.stderr[-2000:]
