"""Shared helpers: tiny models of every family, in float64 where equality is claimed."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import latentpt  # noqa: F401 before torch, see latentpt.cpu

# isort: split
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.registry import METHODS

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_linear(monkeypatch):
    """Under ZeRO 3 DeepSpeed puts a linear of its own into torch and leaves it there, for the tests that follow."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


FAMILIES = ("pythia", "llama", "gpt2")


def tiny_model(family="llama", dtype=torch.float64, seed=0, size=None, weights=2.0, **thoughts):
    """Two layers, 4 heads (2 key heads in llama and its relatives), 37 tokens; weights widened so that nothing is nearly linear."""
    fields = {
        "family": family, "vocab_size": 37, "hidden_size": 16, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 0 if family in ("pythia", "gpt2") else 2, "max_positions": 64, "intermediate_size": 40,
        "rotary_fraction": {"pythia": 0.5, "gpt2": 0.0}.get(family, 1.0), **(size or {}),
    }  # fmt: skip
    model = LanguageModel(ModelConfig(**fields), ThoughtsConfig(**thoughts))
    model.initialize(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.decoder.blocks.parameters():
            parameter.mul_(weights) if parameter.dim() > 1 else parameter.add_(0.1)
        for parameter in model.method.parameters():  # gates are open
            parameter.add_(0.3 if parameter.dim() < 2 else 0.0)
    return model


def thinking(method, thoughts=2):
    """A method by name with so many thoughts, or with none where it has no latent slots."""
    return {"method": method, "num_thoughts": 0 if METHODS[method].one_slot else thoughts}


def visibilities(name):
    """What the slots of a method may be told to see; one slot sees the same under any name."""
    method = METHODS[name]
    free = method.fixed_visibility is None and not method.one_slot
    return ("causal", "stage_causal") if free else ("causal",)


VISIBLE = [(name, visibility) for name in METHODS for visibility in visibilities(name)]
"""Every method with everything that its slots may see."""


def tiny_ids(rows=2, length=7, vocab=37, seed=0):
    """Random ids int64 [rows, length]."""
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each architecture family in turn."""
    return request.param
