"""The decoder's configuration: a family gives the architecture, the numbers give the size."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import model_validator

from latentpt.config import Count, NotNegative, Positive, Section, Share, Whole, nearest, nearest_divisor
from latentpt.modeling.presets import PRESETS

Recompute = Literal["none", "selective", "block", "pass"]
"""How much of the activations is made again in the backward pass, see `latentpt.modeling.recompute`."""


def recompute_by_name(values: Any) -> Any:
    """A section's values, in which `checkpoint_activations` may be a boolean, as before there was a choice: block or none."""
    if isinstance(values, dict) and isinstance(given := values.get("checkpoint_activations"), bool):
        return {**values, "checkpoint_activations": "block" if given else "none"}
    return values


Family = Literal["pythia", "llama", "gpt2", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "gemma2"]

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
_LLAMA = FAMILIES["llama"]
_GEMMA = {**_LLAMA, "activation": "geglu", "norm_offset": 1.0, "tie_embeddings": True}
FAMILIES |= {
    "mistral": _LLAMA,
    "qwen2": {**_LLAMA, "qkv_bias": True},
    "qwen3": {**_LLAMA, "qk_norm": "head"},
    "olmo2": {**_LLAMA, "qk_norm": "full", "norm_place": "post"},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "norm_place": "both"},
}


class RopeScaling(Section):
    """How rotary frequencies are changed for texts longer than those trained on (`latentpt.modeling.rotary`)."""

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    """linear: all divided by factor; dynamic: the base grows with a text longer than model.max_positions; yarn, llama3: slow
    ones divided, fast ones kept."""
    factor: float
    """How many times longer texts become; at least 1."""
    original_positions: Whole = 0
    """yarn and llama3: longest sequence, in tokens, that was trained on before."""
    low_freq_factor: Positive = 1.0
    """llama3: wavelengths above original_positions / this are divided."""
    high_freq_factor: Positive = 4.0
    """llama3: wavelengths below original_positions / this are kept."""
    beta_fast: Positive = 32.0
    """yarn: frequencies that turn more often than this in original_positions are kept."""
    beta_slow: Positive = 1.0
    """yarn: frequencies that turn less often than this in original_positions are divided."""
    attention_factor: Positive | None = None
    """yarn: factor on rotated queries and keys; null means 0.1 ln(factor) + 1, or what the next two say."""
    mscale: NotNegative | None = None
    """yarn: the factor's numerator is 0.1 mscale ln(factor) + 1, where both are given."""
    mscale_all_dim: NotNegative | None = None
    """yarn: the factor's denominator, likewise."""
    truncate: bool = True
    """yarn: whether the band between kept and divided frequencies begins and ends at whole numbers."""

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        if self.factor < 1:
            raise ValueError(f"model.rope_scaling.factor must be at least 1, got {self.factor}")
        if self.kind in ("yarn", "llama3") and self.original_positions < 1:
            raise ValueError(
                f"model.rope_scaling.original_positions must be at least 1 for {self.kind}, got {self.original_positions}"
            )
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"model.rope_scaling.low_freq_factor = {self.low_freq_factor} must be below "
                f"high_freq_factor = {self.high_freq_factor}"
            )
        return self


class ModelConfig(Section):
    """Architecture and size of the decoder that all thought methods share."""

    preset: str | None = None
    """A size by name, such as pythia-410m (`latentpt.modeling.presets`); fields given beside it override it."""
    family: Family = "pythia"
    """Architecture family: what the fields below are where they are not given; pythia is GPT-NeoX."""
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
    norm_place: Literal["pre", "post", "both"] = "pre"
    """Where a block normalises: what attention and MLP read, what they return (OLMo 2), or both (Gemma 2)."""
    norm_offset: NotNegative = 0.0
    """Added to the weights of RMSNorm; 1 in Gemma, whose weights start at 0."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMSNorm of queries and keys before the rotation: each head by itself (Qwen 3) or all heads together (OLMo 2)."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu"] = "gelu"
    """Non-linearity of the MLP; swiglu and geglu (tanh form) have a gate."""
    bias: bool = True
    """Whether linear layers have biases (the head never has)."""
    qkv_bias: bool | None = None
    """Whether queries, keys and values have biases; null means as bias."""
    out_bias: bool | None = None
    """Whether attention's output has a bias; null means as bias."""
    parallel_residual: bool = True
    """Attention and MLP read the same residual (GPT-NeoX) instead of one after the other."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How positions enter: rotary embedding in attention or a learned table added to the input."""
    rotary_fraction: Share = 0.25
    """Share of each head's width that is rotated."""
    rope_theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Change of the rotary frequencies for longer texts; null means none."""
    logit_softcap: Positive | None = None
    """Logits z become cap tanh(z / cap); null means that they stay."""
    tie_embeddings: bool = False
    """Whether head and embedding are one matrix."""
    mup_base_width: Count | None = None
    """muP: the width for which optimizer.lr was chosen; first weights and learning rates are scaled so that it suits this width
    too, with heads of the same size (`latentpt.thoughts.width`); null: they are not."""

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
        if self.rope_scaling is not None and self.positions != "rotary":
            raise ValueError("model.rope_scaling needs model.positions = rotary")
        if self.rope_scaling is not None and self.rope_scaling.kind == "dynamic" and self.rotary_size < 4:
            raise ValueError("model.rope_scaling.kind = dynamic needs at least 4 rotated values per head")
        if self.mup_base_width is not None and self.tie_embeddings:
            raise ValueError(
                "model.mup_base_width needs model.tie_embeddings = false: embedding and head are scaled otherwise"
            )
        if self.norm_offset and self.norm != "rms":
            raise ValueError("model.norm_offset needs model.norm = rms")
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
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.activation in ("swiglu", "geglu")

    @property
    def qkv_biased(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def out_biased(self) -> bool:
        """Whether attention's output has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def rotary_size(self) -> int:
        """Values of each head that are rotated."""
        return int(self.head_width * self.rotary_fraction)
