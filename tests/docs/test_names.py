"""Tests that documents name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def known():
    """Names of test files and test functions."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = (re.findall(r"def (test_\w+)", path.read_text()) for path in files)
    return {path.stem for path in files}.union(*functions)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_a_document_names_is_there(document, known):
    assert set(re.findall(r"\btest_\w+", (ROOT / document).read_text())) <= known
