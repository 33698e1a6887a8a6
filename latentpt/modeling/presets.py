"""Sizes by name: Pythia's, the published LLaMA arms' and GPT-2's (methods.md section 5)."""

from __future__ import annotations

from typing import Any

_PYTHIA = {
    "14m": (6, 128, 4), "31m": (6, 256, 8), "70m": (6, 512, 8), "160m": (12, 768, 12), "410m": (24, 1024, 16),
    "1b": (16, 2048, 8), "1.4b": (24, 2048, 16), "2.8b": (32, 2560, 32),
}  # fmt: skip
_LLAMA = {
    "125m": (12, 768, 12, 2064), "410m": (24, 1024, 16, 2752), "834m": (24, 1536, 24, 4128),
    "1.4b": (24, 2048, 32, 5504), "2.8b": (48, 2048, 32, 5504), "410m_x2depth": (48, 1024, 16, 2752),
}  # fmt: skip
_GPT2 = {"124m": (12, 768, 12), "355m": (24, 1024, 16)}

_SIZE = ("num_layers", "hidden_size", "num_heads", "intermediate_size")

PRESETS: dict[str, dict[str, Any]] = {
    **{f"pythia-{k}": {"family": "pythia", "vocab_size": 50304, **dict(zip(_SIZE, v, strict=False))} for k, v in _PYTHIA.items()},
    **{f"llama-{k}": {"family": "llama", "vocab_size": 50304, **dict(zip(_SIZE, v, strict=False))} for k, v in _LLAMA.items()},
    **{f"gpt2-{k}": {"family": "gpt2", "vocab_size": 50257, "max_positions": 1024, **dict(zip(_SIZE, v, strict=False))} for k, v in _GPT2.items()},
}  # fmt: skip
"""Preset name -> fields of ModelConfig."""
