"""Tests for a machine with a CUDA device; skipped without one. They generate what they read."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def fallbacks_are_errors(recwarn):
    """A kernel that quietly gave way to another would be tested by nobody."""
    yield
    gave_way = [str(w.message) for w in recwarn if "latentpt_kernels" in str(w.message)]
    assert not gave_way, gave_way
