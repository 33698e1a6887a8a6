"""LLaMA and its relatives: one layout, and for each of them the few keys in which it differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from latentpt.config import ConfigError
from latentpt.hub.keys import Keys
from latentpt.hub.rope import read_rope, write_rope
from latentpt.hub.rules import Layout, Rule, pairs, parts, same, stacked
from latentpt.modeling.config import ModelConfig


class _Relative(NamedTuple):
    kind: str
    family: str
    architecture: str
    defaults: Mapping[str, Any]
    """Values of keys that a configuration may leave out."""
    read: Callable[[Keys], dict[str, Any]]
    """Fields of ModelConfig from the keys that only it has."""
    write: Callable[[ModelConfig], dict[str, Any]]
    activations: tuple[str, ...] = ("silu",)
    """Names of the gate's non-linearity, the one that is written first."""
    activation_key: str = "hidden_act"
    scaled: bool = False


# --- what differs ---------------------------------------------------------------------------------------------------


def _attention_bias(hf: Keys, mlp: bool = False) -> dict[str, Any]:
    bias = hf.get("attention_bias", False)
    own = None if bias == mlp else bias
    return {"bias": mlp, "qkv_bias": own, "out_bias": own}


def _read_window(hf: Keys, window: Any, slides: bool = True) -> None:
    """Raise ConfigError unless a window of `window` tokens hides nothing in the model's longest sequence."""
    kinds = hf.get("layer_types")
    if kinds is not None:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ConfigError(f"layer_types names {min(unknown)}, which is not supported")
        slides = "sliding_attention" in kinds
    longest = hf["max_position_embeddings"]
    if slides and window is not None and window < longest:
        raise ConfigError(
            f"sliding_window = {window} is shorter than max_position_embeddings = {longest}, which is not supported; "
            f"with max_position_embeddings = {window} in config.json the model computes the same on texts that fit"
        )


def _read_mistral(hf: Keys) -> dict[str, Any]:
    _read_window(hf, hf["sliding_window"])
    return {}


def _read_qwen_window(hf: Keys) -> None:
    window, first = hf.get("sliding_window", 4096), hf.get("max_window_layers", 28)
    on = hf.get("use_sliding_window", False) and first < hf["num_hidden_layers"]
    _read_window(hf, window if hf.get("use_sliding_window", False) else None, on)


def _read_qwen2(hf: Keys) -> dict[str, Any]:
    _read_qwen_window(hf)
    return {}


def _read_qwen3(hf: Keys) -> dict[str, Any]:
    _read_qwen_window(hf)
    return _attention_bias(hf)


def _read_gemma(hf: Keys) -> dict[str, Any]:
    hf.only("use_bidirectional_attention", None, False)
    hf.only("hidden_activation", *_GELU, None)
    return _attention_bias(hf)


def _read_gemma2(hf: Keys) -> dict[str, Any]:
    _read_window(hf, hf["sliding_window"])
    if hf["attn_logit_softcapping"] is not None:
        raise ConfigError(
            f"attn_logit_softcapping = {hf['attn_logit_softcapping']} is not supported; the supported value is null"
        )
    hf.only("query_pre_attn_scalar", hf["head_dim"])
    return {**_read_gemma(hf), "logit_softcap": hf["final_logit_softcapping"]}


def _write_attention_bias(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_biased}


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return {
        **_write_attention_bias(config),
        "sliding_window": config.max_positions,
        "layer_types": ["full_attention"] * config.num_layers,
        "attn_logit_softcapping": None,
        "query_pre_attn_scalar": config.head_width,
        "final_logit_softcapping": config.logit_softcap,
    }


_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu")  # the last is a legacy name, which transformers replaces
_WHERE_FULL = {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": False}

_RELATIVES = (
    _Relative(
        "llama", "llama", "LlamaForCausalLM", {**_WHERE_FULL, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        lambda hf: _attention_bias(hf, hf.get("mlp_bias", False)),
        lambda config: {**_write_attention_bias(config), "mlp_bias": config.bias},
    ),
    _Relative(
        "mistral", "mistral", "MistralForCausalLM", {"head_dim": None, "tie_word_embeddings": False},
        _read_mistral, lambda config: {"sliding_window": None},
    ),
    _Relative(
        "qwen2", "qwen2", "Qwen2ForCausalLM", {"head_dim": None, "tie_word_embeddings": False},
        _read_qwen2, lambda config: {"use_sliding_window": False},
    ),
    _Relative(
        "qwen3", "qwen3", "Qwen3ForCausalLM", {"tie_word_embeddings": False},
        _read_qwen3, lambda config: {**_write_attention_bias(config), "use_sliding_window": False},
    ),
    _Relative("olmo2", "olmo2", "Olmo2ForCausalLM", _WHERE_FULL, _attention_bias, _write_attention_bias),
    _Relative(
        "gemma", "gemma", "GemmaForCausalLM", {"tie_word_embeddings": True}, _read_gemma, _write_attention_bias,
        _GELU, scaled=True,
    ),
    _Relative(
        "gemma2", "gemma2", "Gemma2ForCausalLM", {"tie_word_embeddings": True}, _read_gemma2, _write_gemma2,
        _GELU, "hidden_activation", scaled=True,
    ),
)  # fmt: skip


# --- what they share ------------------------------------------------------------------------------------------------


def _read(relative: _Relative, hf: Keys) -> dict[str, Any]:
    def value(key: str) -> Any:
        return hf.get(key, relative.defaults[key]) if key in relative.defaults else hf[key]

    activation = hf.get(relative.activation_key) or relative.activations[0]
    if activation not in relative.activations:
        raise ConfigError(
            f"{relative.activation_key} = {activation} is not supported for {relative.kind}; "
            f"the supported value is {relative.activations[0]}"
        )
    hf.only("rope_interleaved", False)
    rope = read_rope(hf)
    if rope.pop("rotary_fraction") != 1:
        raise ConfigError(f"partial_rotary_factor is not supported for {relative.kind}; its heads turn whole")
    return {
        "family": relative.family,
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": value("num_key_value_heads") or 0,
        "head_size": value("head_dim") or 0,
        "intermediate_size": hf["intermediate_size"],
        "max_positions": value("max_position_embeddings"),
        "norm_eps": value("rms_norm_eps"),
        "tie_embeddings": value("tie_word_embeddings"),
        **rope,
        **relative.read(hf),
    }


def _write(relative: _Relative, config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": relative.kind,
        "architectures": [relative.architecture],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        relative.activation_key: relative.activations[0],
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(config),
        **relative.write(config),
    }


_NORMS = {
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "post": {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
"""Where a block normalises -> names of its norms, ours and theirs."""


def _rules(config: ModelConfig) -> list[Rule]:
    kv_rows = config.kv_heads * config.head_width
    rows = [config.num_heads * config.head_width, kv_rows, kv_rows]
    norms = dict(_NORMS[config.norm_place])
    if config.qk_norm != "none":
        norms |= {f"attention.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    rules = [same("embedding.weight", "model.embed_tokens.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        rules += pairs({f"{ours}.{a}": f"{theirs}.{b}" for a, b in norms.items()}, ("weight",))
        rules += pairs({f"{ours}.attention.out": f"{theirs}.self_attn.o_proj"}, parts(config.out_biased))
        rules += pairs({f"{ours}.mlp.down": f"{theirs}.mlp.down_proj"}, parts(config.bias))
        for part in parts(config.qkv_biased):
            qkv = [f"{theirs}.self_attn.{x}_proj.{part}" for x in "qkv"]
            rules.append(stacked(f"{ours}.attention.qkv.{part}", qkv, rows))
        for part in parts(config.bias):
            gated = [f"{theirs}.mlp.{x}_proj.{part}" for x in ("gate", "up")]
            rules.append(stacked(f"{ours}.mlp.up.{part}", gated, [config.mlp_size] * 2))
    return [*rules, same("norm.weight", "model.norm.weight"), same("head.weight", "lm_head.weight")]


def _layout(relative: _Relative) -> Layout:
    return Layout(
        lambda hf: _read(relative, hf), lambda config: _write(relative, config), _rules, "model.", relative.scaled
    )  # fmt: skip


LAYOUTS = {relative.kind: _layout(relative) for relative in _RELATIVES}
"""Hugging Face `model_type` -> its layout."""
MODEL_TYPES = {relative.family: relative.kind for relative in _RELATIVES}
"""Our family -> Hugging Face `model_type`."""
