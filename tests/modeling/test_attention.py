"""Backends of causal attention."""

import importlib.util
import sys
import types

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.modeling import attention
from tests.conftest import tiny_model


def test_the_flash_backend_hands_over_its_layout_and_gets_the_same_result(monkeypatch):
    def flash_attn_func(q, k, v, causal):  # the package's interface: [B, n, H, D]
        assert causal and q.shape[1] == k.shape[1] == 7
        return attention._sdpa_causal(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    torch.testing.assert_close(attention._flash_causal(q, k, v), attention._sdpa_causal(q, k, v))


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_a_backend_that_is_not_installed_is_refused_in_one_sentence():
    config = tiny_model().config
    with pytest.raises(ConfigError, match="needs the package flash-attn"):
        attention.Attention(config, "flash")
    with pytest.raises(ConfigError, match="nearest is sdpa"):
        attention.Attention(config, "sdp")


def test_grouped_heads_equal_repeated_ones():
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    repeated = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    torch.testing.assert_close(attention._sdpa_causal(q, k, v), attention._sdpa_causal(q, *repeated))
