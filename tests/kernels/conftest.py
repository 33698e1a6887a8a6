"""Where the kernels' tests run: those in interpreted/ in processes of their own, because TRITON_INTERPRET is read at import."""

import os
import warnings

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [] if INTERPRETED else ["interpreted"]


@pytest.fixture(autouse=True)
def fallbacks_are_errors():
    """A kernel that quietly gave way to another would be tested by nobody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="latentpt_kernels")
        yield


@pytest.fixture
def triton_mode(monkeypatch):
    """LATENTPT_KERNELS=triton, and every fresh tensor full of NaN: what a kernel forgets to write is seen."""
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")
    new_empty, empty_like, empty = torch.Tensor.new_empty, torch.empty_like, torch.empty

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(empty_like))
    monkeypatch.setattr(torch, "empty", poisoned(empty))
