"""The decoder's configuration: a family gives the architecture, the numbers give the size."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import model_validator

from latentpt.config import Count, Positive, Section, Share, Whole, nearest, nearest_divisor
from latentpt.modeling.presets import PRESETS

Family = Literal["pythia", "llama", "gpt2"]

# What each family fixes. Every entry can be overridden by the field of the same name.
FAMILIES: dict[str, dict[str, Any]] = {
    "pythia": {
        "norm": "layer", "activation": "gelu", "bias": True, "parallel_residual": True,
        "positions": "rotary", "rotary_fraction": 0.25, "tie_embeddings": False,
    },
    "llama": {
        "norm": "rms", "activation": "swiglu", "bias": False, "parallel_residual": False,
        "positions": "rotary", "rotary_fraction": 1.0, "tie_embeddings": False,
    },
    "gpt2": {
        "norm": "layer", "activation": "gelu_tanh", "bias": True, "parallel_residual": False,
        "positions": "learned", "rotary_fraction": 0.0, "tie_embeddings": True,
    },
}  # fmt: skip


class ModelConfig(Section):
    """Architecture and size of the decoder that all thought methods share."""

    preset: str | None = None
    """A size by name, such as pythia-410m (`latentpt.modeling.presets`); fields given beside it override it."""
    family: Family = "pythia"
    """Architecture family: pythia (GPT-NeoX), llama or gpt2."""
    vocab_size: Count = 50304
    """Rows of the embedding and of the head, in tokens."""
    hidden_size: Count = 512
    """Width d of the residual stream."""
    num_layers: Annotated[int, Ge(1), Le(10_000)] = 6
    """Number of blocks."""
    num_heads: Count = 8
    """Query heads; must divide hidden_size unless head_size is given."""
    num_kv_heads: Whole = 0
    """Key and value heads (grouped-query attention); 0 means num_heads."""
    head_size: Whole = 0
    """Width of one head; 0 means hidden_size / num_heads."""
    intermediate_size: Whole = 0
    """Width of the MLP; 0 means 4 x hidden_size."""
    max_positions: Count = 2048
    """Longest sequence in tokens; latent slots share their token's position and use none up."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation: LayerNorm or RMSNorm."""
    norm_eps: Positive = 1e-5
    """Epsilon of the norms."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    """Non-linearity of the MLP; swiglu has a gate."""
    bias: bool = True
    """Whether linear layers have biases (the head never has)."""
    parallel_residual: bool = True
    """Attention and MLP read the same residual (GPT-NeoX) instead of one after the other."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How positions enter: rotary embedding in attention or a learned table added to the input."""
    rotary_fraction: Share = 0.25
    """Share of each head's width that is rotated."""
    rope_theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    tie_embeddings: bool = False
    """Whether head and embedding are one matrix."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_family(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = values.get("preset")
        if preset is not None and preset not in PRESETS:
            raise ValueError(
                f"model.preset = {preset} is unknown; the nearest preset is {nearest(preset, PRESETS)}"
            )
        values = {**(PRESETS[preset] if preset else {}), **values}
        return {**FAMILIES.get(values.get("family", "pythia"), {}), **values}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.head_size == 0 and self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.num_heads = {self.num_heads} does not divide model.hidden_size = {self.hidden_size}; "
                f"the nearest value that does is {nearest_divisor(self.hidden_size, self.num_heads)}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide model.num_heads = {self.num_heads}"
            )
        if self.positions == "rotary" and (self.rotary_size < 2 or self.rotary_size % 2):
            raise ValueError(
                f"model.rotary_fraction = {self.rotary_fraction} rotates {self.rotary_size} of "
                f"{self.head_width} values per head; it must be an even number of at least 2"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Width of the MLP."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def rotary_size(self) -> int:
        """Values of each head that are rotated."""
        return int(self.head_width * self.rotary_fraction)
