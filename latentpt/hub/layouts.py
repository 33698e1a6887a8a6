"""How each Hugging Face architecture lays out the decoder's parameters and configuration."""

from __future__ import annotations

from typing import Any

from latentpt.config import ConfigError, nearest
from latentpt.hub import llamas
from latentpt.hub.keys import Keys
from latentpt.hub.rope import read_rope, write_rope
from latentpt.hub.rules import Layout, Rule, head_by_head, pairs, parts, same, transposed
from latentpt.modeling.config import ModelConfig

# --- GPT-NeoX -------------------------------------------------------------------------------------------------------


def _read_neox(hf: Keys) -> dict[str, Any]:
    biased = hf.get("attention_bias", True)
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
        **read_rope(hf, "rotary_emb_base", "rotary_pct", 0.25),
        "qkv_bias": None if biased else False,
        "out_bias": None if biased else False,
        "tie_embeddings": hf.get("tie_word_embeddings", False),
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    rope = write_rope(config, "rotary_emb_base")
    rope["rope_parameters"]["partial_rotary_factor"] = config.rotary_fraction
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
        **rope,
        "attention_bias": config.qkv_biased,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _neox_rules(config: ModelConfig) -> list[Rule]:
    both = ("weight", "bias")
    rules = [same("embedding.weight", "gpt_neox.embed_in.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
        names = {
            f"{ours}.attention_norm": f"{theirs}.input_layernorm",
            f"{ours}.mlp_norm": f"{theirs}.post_attention_layernorm",
            f"{ours}.mlp.up": f"{theirs}.mlp.dense_h_to_4h",
            f"{ours}.mlp.down": f"{theirs}.mlp.dense_4h_to_h",
        }
        rules += pairs(names, both)
        rules += pairs({f"{ours}.attention.out": f"{theirs}.attention.dense"}, parts(config.out_biased))
        for s in parts(config.qkv_biased):
            rules.append(
                head_by_head(f"{ours}.attention.qkv.{s}", f"{theirs}.attention.query_key_value.{s}", config)
            )
    return [
        *rules,
        *pairs({"norm": "gpt_neox.final_layer_norm"}, both),
        same("head.weight", "embed_out.weight"),
    ]


# --- GPT-2 ----------------------------------------------------------------------------------------------------------


def _read_gpt2(hf: Keys) -> dict[str, Any]:
    hf.only("scale_attn_by_inverse_layer_idx", False)
    hf.only("scale_attn_weights", True)
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
        same("embedding.weight", "transformer.wte.weight"),
        same("position_embedding.weight", "transformer.wpe.weight"),
    ]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        norms = {f"{ours}.attention_norm": f"{theirs}.ln_1", f"{ours}.mlp_norm": f"{theirs}.ln_2"}
        rules += pairs(norms, both)
        linears = {
            "attention.qkv": "attn.c_attn",
            "attention.out": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
        for a, b in linears.items():
            rules.append(transposed(f"{ours}.{a}.weight", f"{theirs}.{b}.weight"))
            rules.append(same(f"{ours}.{a}.bias", f"{theirs}.{b}.bias"))
    return [*rules, *pairs({"norm": "transformer.ln_f"}, both), same("head.weight", "lm_head.weight")]


# --- all ------------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "swiglu": "silu", "geglu": "gelu_pytorch_tanh"}


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


LAYOUTS: dict[str, Layout] = {
    "gpt_neox": Layout(_read_neox, _write_neox, _neox_rules, "gpt_neox."),
    "gpt2": Layout(_read_gpt2, _write_gpt2, _gpt2_rules, "transformer."),
    **llamas.LAYOUTS,
}
"""Hugging Face `model_type` -> its layout."""

MODEL_TYPES = {"pythia": "gpt_neox", "gpt2": "gpt2", **llamas.MODEL_TYPES}
"""Our family -> Hugging Face `model_type`."""
