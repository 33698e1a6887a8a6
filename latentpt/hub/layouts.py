"""How each Hugging Face architecture lays out the decoder's parameters and configuration.

A `Rule` ties one parameter of ours to one or several of theirs by a linear re-layout (concatenation, transposition,
permutation of rows), so gradients and optimizer states travel by the same rules as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.config import ConfigError, nearest
from latentpt.modeling.config import ModelConfig


class Rule(NamedTuple):
    """One parameter of ours made of some of theirs, and back."""

    ours: str
    theirs: tuple[str, ...]
    to_ours: Callable[[list[Tensor]], Tensor]
    to_theirs: Callable[[Tensor], list[Tensor]]


class Layout(NamedTuple):
    """One Hugging Face architecture."""

    read_config: Callable[[Mapping[str, Any]], dict[str, Any]]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[Rule]]


def _same(ours: str, theirs: str) -> Rule:
    return Rule(ours, (theirs,), lambda tensors: tensors[0], lambda tensor: [tensor])


def _transposed(ours: str, theirs: str) -> Rule:
    """GPT-2's Conv1D keeps weights as [in, out]."""
    return Rule(ours, (theirs,), lambda tensors: tensors[0].T, lambda tensor: [tensor.T])


def _stacked(ours: str, theirs: list[str], rows: list[int]) -> Rule:
    """Their matrices one under the other."""
    return Rule(
        ours, tuple(theirs), lambda tensors: torch.cat(tensors), lambda tensor: list(tensor.split(rows))
    )


def _head_by_head(ours: str, theirs: str, config: ModelConfig) -> Rule:
    """GPT-NeoX stores q, k, v of head 0, then of head 1, ..; ours are all q, all k, all v."""
    heads, width = config.num_heads, config.head_width

    def to_ours(tensors: list[Tensor]) -> Tensor:
        return tensors[0].unflatten(0, (heads, 3, width)).transpose(0, 1).flatten(0, 2)

    def to_theirs(tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(0, (3, heads, width)).transpose(0, 1).flatten(0, 2)]

    return Rule(ours, (theirs,), to_ours, to_theirs)


def _pairs(names: dict[str, str], suffixes: tuple[str, ...]) -> list[Rule]:
    return [_same(f"{ours}.{s}", f"{theirs}.{s}") for ours, theirs in names.items() for s in suffixes]


# --- GPT-NeoX -------------------------------------------------------------------------------------------------------


def _read_neox(hf: Mapping[str, Any]) -> dict[str, Any]:
    rope = hf.get("rope_parameters") or {}
    _refuse(hf, "rope_scaling", None)
    return {
        "family": "pythia",
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "intermediate_size": hf["intermediate_size"],
        "max_positions": hf.get("max_position_embeddings", 2048),
        "norm_eps": hf.get("layer_norm_eps", 1e-5),
        "activation": _activation(hf.get("hidden_act", "gelu")),
        "parallel_residual": hf.get("use_parallel_residual", True),
        "rotary_fraction": rope.get("partial_rotary_factor", hf.get("rotary_pct", 0.25)),
        "rope_theta": rope.get("rope_theta", hf.get("rotary_emb_base", 10000)),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": _ACTIVATIONS[config.activation],
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_theta,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.rotary_fraction,
        },
        "tie_word_embeddings": config.tie_embeddings,
    }


def _neox_rules(config: ModelConfig) -> list[Rule]:
    both = ("weight", "bias")
    rules = [_same("embedding.weight", "gpt_neox.embed_in.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
        names = {
            f"{ours}.attention_norm": f"{theirs}.input_layernorm",
            f"{ours}.mlp_norm": f"{theirs}.post_attention_layernorm",
            f"{ours}.attention.out": f"{theirs}.attention.dense",
            f"{ours}.mlp.up": f"{theirs}.mlp.dense_h_to_4h",
            f"{ours}.mlp.down": f"{theirs}.mlp.dense_4h_to_h",
        }
        rules += _pairs(names, both)
        for s in both:
            rules.append(
                _head_by_head(f"{ours}.attention.qkv.{s}", f"{theirs}.attention.query_key_value.{s}", config)
            )
    return [
        *rules,
        *_pairs({"norm": "gpt_neox.final_layer_norm"}, both),
        _same("head.weight", "embed_out.weight"),
    ]


# --- LLaMA ----------------------------------------------------------------------------------------------------------


def _read_llama(hf: Mapping[str, Any]) -> dict[str, Any]:
    rope = hf.get("rope_parameters") or {}
    for key in ("attention_bias", "mlp_bias"):
        _refuse(hf, key, False)
    _refuse(hf, "rope_scaling", None)
    if hf.get("hidden_act", "silu") != "silu":
        raise ConfigError(
            f"hidden_act = {hf['hidden_act']} is not supported for llama; the supported value is silu"
        )
    return {
        "family": "llama",
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": hf.get("num_key_value_heads") or 0,
        "head_size": hf.get("head_dim") or 0,
        "intermediate_size": hf["intermediate_size"],
        "max_positions": hf.get("max_position_embeddings", 2048),
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", hf.get("rope_theta", 10000.0)),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
    }


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
    }


def _llama_rules(config: ModelConfig) -> list[Rule]:
    kv_rows = config.kv_heads * config.head_width
    rows = [config.num_heads * config.head_width, kv_rows, kv_rows]
    rules = [_same("embedding.weight", "model.embed_tokens.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        rules += _pairs(
            {
                f"{ours}.attention_norm": f"{theirs}.input_layernorm",
                f"{ours}.mlp_norm": f"{theirs}.post_attention_layernorm",
                f"{ours}.attention.out": f"{theirs}.self_attn.o_proj",
                f"{ours}.mlp.down": f"{theirs}.mlp.down_proj",
            },
            ("weight",),
        )
        qkv = [f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv"]
        rules.append(_stacked(f"{ours}.attention.qkv.weight", qkv, rows))
        gated = [f"{theirs}.mlp.{x}_proj.weight" for x in ("gate", "up")]
        rules.append(_stacked(f"{ours}.mlp.up.weight", gated, [config.mlp_size] * 2))
    return [*rules, _same("norm.weight", "model.norm.weight"), _same("head.weight", "lm_head.weight")]


# --- GPT-2 ----------------------------------------------------------------------------------------------------------


def _read_gpt2(hf: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(hf, "scale_attn_by_inverse_layer_idx", False)
    _refuse(hf, "scale_attn_weights", True)
    return {
        "family": "gpt2",
        "hidden_size": hf["n_embd"],
        "num_layers": hf["n_layer"],
        "num_heads": hf["n_head"],
        "intermediate_size": hf.get("n_inner") or 0,
        "max_positions": hf.get("n_positions", 1024),
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "activation": _activation(hf.get("activation_function", "gelu_new")),
        "tie_embeddings": hf.get("tie_word_embeddings", True),
    }


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_size,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": _ACTIVATIONS[config.activation],
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _gpt2_rules(config: ModelConfig) -> list[Rule]:
    both = ("weight", "bias")
    rules = [
        _same("embedding.weight", "transformer.wte.weight"),
        _same("position_embedding.weight", "transformer.wpe.weight"),
    ]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        norms = {f"{ours}.attention_norm": f"{theirs}.ln_1", f"{ours}.mlp_norm": f"{theirs}.ln_2"}
        rules += _pairs(norms, both)
        linears = {
            "attention.qkv": "attn.c_attn",
            "attention.out": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
        for a, b in linears.items():
            rules.append(_transposed(f"{ours}.{a}.weight", f"{theirs}.{b}.weight"))
            rules.append(_same(f"{ours}.{a}.bias", f"{theirs}.{b}.bias"))
    return [*rules, *_pairs({"norm": "transformer.ln_f"}, both), _same("head.weight", "lm_head.weight")]


# --- all ------------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "swiglu": "silu"}


def _activation(name: str) -> str:
    known = {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
    }
    if name not in known:
        raise ConfigError(
            f"activation {name} is not supported; the nearest supported one is {nearest(name, known)}"
        )
    return known[name]


def _refuse(hf: Mapping[str, Any], key: str, only: Any) -> None:
    """A feature the decoder does not have must not be dropped in silence."""
    if hf.get(key, only) != only:
        raise ConfigError(f"{key} = {hf[key]} is not supported; the supported value is {only}")


LAYOUTS: dict[str, Layout] = {
    "gpt_neox": Layout(_read_neox, _write_neox, _neox_rules),
    "llama": Layout(_read_llama, _write_llama, _llama_rules),
    "gpt2": Layout(_read_gpt2, _write_gpt2, _gpt2_rules),
}
"""Hugging Face `model_type` -> its layout."""

MODEL_TYPES = {"pythia": "gpt_neox", "llama": "llama", "gpt2": "gpt2"}
"""Our family -> Hugging Face `model_type`."""
