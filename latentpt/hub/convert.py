"""Weights in and out: Hugging Face configuration and state dict <-> LanguageModel."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from latentpt.config import ConfigError, build, nearest
from latentpt.hub.keys import Keys
from latentpt.hub.layouts import LAYOUTS, MODEL_TYPES
from latentpt.hub.published import KEYS as PUBLISHED_KEYS
from latentpt.hub.published import published_thoughts
from latentpt.hub.rules import Layout, Rule
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

# Buffers that some transformers versions save beside the parameters; they hold constants.
_BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|attention\.bias|attention\.masked_bias|attn\.bias|attn\.masked_bias)$"
)
_OURS = "latentpt"
# transformers 5 holds GPT-NeoX's head under another name in memory than in files.
_IN_MEMORY = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}
# Keys that transformers 4 writes for every architecture, with the values under which a decoder is no other thing.
_NOTHING_ELSE: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
}


def from_hf(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], thoughts: Mapping[str, Any] | None = None
) -> LanguageModel:
    """A model from a Hugging Face configuration (`model_type` a name of `latentpt.hub.layouts.LAYOUTS`) and state dict.

    `thoughts` are fields of ThoughtsConfig, e.g. {"method": "latent", "num_thoughts": 2, "refinements": 3}; fields left
    out come from the configuration's own `latentpt` entry, if `to_hf` wrote one, or from the keys of the published
    code. The embedding scale is the method's own, except that vanilla reads weights as transformers does.
    Raises ConfigError, in one sentence, for an architecture, a key, a shape or a name that does not fit. The model
    has the dtype of the state dict's embedding; parameters that only the method has (the tables of
    sequential_hidden_decoding) are fresh, a function of seed 0, where the state dict lacks them.
    """
    kind, layout = _layout(config)
    size, thinking = read_configs(config, thoughts)
    rules = layout.rules(size)
    state_dict = _as_in_files(kind, layout.prefix, rules[-1].theirs[0], state_dict)
    with torch.device("meta"):
        _check(LanguageModel(size, thinking), rules, state_dict)  # before any memory is asked for
    model = LanguageModel(size, thinking)
    if any(f"{_OURS}.{name}" not in state_dict for name, _ in model.method.named_parameters()):
        model.initialize(0)
    model = model.to(state_dict[rules[0].theirs[0]].dtype)
    with torch.no_grad():
        parameters = dict(model.decoder.named_parameters(remove_duplicate=False))
        for rule in rules:
            if rule.ours not in _tied(size):
                parameters[rule.ours].copy_(rule.to_ours([state_dict[name] for name in rule.theirs]))
        for name, parameter in model.method.named_parameters():
            if f"{_OURS}.{name}" in state_dict:
                parameter.copy_(state_dict[f"{_OURS}.{name}"])
    return model


def read_configs(
    config: Mapping[str, Any], thoughts: Mapping[str, Any] | None = None
) -> tuple[ModelConfig, ThoughtsConfig]:
    """What `from_hf` makes of a configuration; raises ConfigError as it does."""
    kind, layout = _layout(config)
    keys = Keys(config)
    try:
        fields = layout.read_config(keys)
        size = build(ModelConfig, {"vocab_size": keys["vocab_size"], **fields})
        for key, value in _NOTHING_ELSE.items():
            keys.only(key, *value)
        keys.check((_OURS, *PUBLISHED_KEYS))
        return size, build(ThoughtsConfig, _thoughts(config, thoughts or {}, stock_scale(config)))
    except KeyError as missing:
        raise ConfigError(f"the {kind} configuration has no {missing.args[0]}") from None
    except (AttributeError, TypeError) as error:
        raise ConfigError(
            f"the {kind} configuration holds a value of another kind than expected ({error})"
        ) from None


def stock_scale(config: Mapping[str, Any]) -> float:
    """What the architecture's own class multiplies token embeddings by."""
    return math.sqrt(config["hidden_size"]) if _layout(config)[1].scaled else 1.0


def to_hf(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of from_hf: (configuration, state dict), a linear re-layout of the parameters.

    How the model thinks is kept under the configuration's `latentpt` entry. Raises ConfigError for a model whose
    configuration leaves its family's architecture.
    """
    layout = LAYOUTS[MODEL_TYPES[model.config.family]]
    check_expressible(model.config)
    ours = dict(model.decoder.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    for rule in layout.rules(model.config):
        state.update(zip(rule.theirs, rule.to_theirs(ours[rule.ours].detach()), strict=True))
    state.update({f"{_OURS}.{name}": p.detach() for name, p in model.method.named_parameters()})
    thinking = {**model.thoughts.model_dump(mode="json"), "embed_scale": model.method.embed_scale}
    config = {**layout.write_config(model.config), "vocab_size": model.config.vocab_size, _OURS: thinking}
    return config, {name: tensor.contiguous() for name, tensor in state.items()}


def check_expressible(config: ModelConfig) -> None:
    """Raise ConfigError unless the family's Hugging Face class can compute what the configuration says."""
    kind = MODEL_TYPES[config.family]
    written = {**LAYOUTS[kind].write_config(config), "vocab_size": config.vocab_size}
    read = build(ModelConfig, {"vocab_size": config.vocab_size, **LAYOUTS[kind].read_config(Keys(written))})
    for name in ModelConfig.model_fields:
        if name in ("preset", "num_kv_heads", "head_size", "intermediate_size", "qkv_bias", "out_bias"):
            continue  # compared in their derived form below
        ours, theirs = getattr(config, name), getattr(read, name)
        if ours != theirs:
            raise ConfigError(f"model.{name} = {ours} cannot be said in {kind}, which has {theirs}")
    for name in ("kv_heads", "head_width", "mlp_size", "qkv_biased", "out_biased"):
        ours, theirs = getattr(config, name), getattr(read, name)
        if ours != theirs:
            raise ConfigError(f"{name} = {ours} cannot be said in {kind}, which has {theirs}")


def _tied(config: ModelConfig) -> tuple[str, ...]:
    """Parameters that are another one; a state dict may leave them out."""
    return ("head.weight",) if config.tie_embeddings else ()


def _layout(config: Mapping[str, Any]) -> tuple[str, Layout]:
    kind = str(config.get("model_type", ""))
    if kind not in LAYOUTS:
        raise ConfigError(
            f"model_type = {kind} is not supported; the nearest supported one is {nearest(kind, LAYOUTS)}"
        )
    return kind, LAYOUTS[kind]


def _as_in_files(kind: str, prefix: str, head: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that a folder of the whole model has."""
    names = _IN_MEMORY.get(kind, {})
    state = {names.get(name, name): tensor for name, tensor in state_dict.items()}
    if any(name.startswith(prefix) for name in state):
        return state
    # A folder of the trunk alone, as the hub keeps GPT-2.
    own = (head, f"{_OURS}.")
    return {name if name.startswith(own) else prefix + name: tensor for name, tensor in state.items()}


def _thoughts(config: Mapping[str, Any], given: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The thoughts' fields: given ones before written ones before defaults."""
    written = config.get(_OURS) or published_thoughts(config) or {}
    if not isinstance(written, Mapping):
        raise ConfigError(f"the configuration's {_OURS} entry must be an object, not {written!r}")
    if given.get("method", written.get("method")) != written.get("method"):
        written = {}  # another method: its solver and scale are not this one's
    fields = {**written, **given}
    if fields.get("method", "vanilla") == "vanilla":
        fields.setdefault("embed_scale", scale)
    if fields.get("method") == "pause" and "pause_token_id" in config:
        fields.setdefault("pause_token", config["pause_token_id"])  # as the published checkpoints name it
    return fields


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]], state_dict: Mapping[str, Tensor], optional: Container[str] = ()
) -> None:
    """Raise ConfigError naming the first tensor that is missing, unknown, misshapen or holds no real numbers."""
    for name, wanted in shapes.items():
        if name not in state_dict:
            if name not in optional:
                raise ConfigError(f"tensor {name} is missing")
            continue
        tensor = state_dict[name]
        if tuple(tensor.shape) != wanted:
            raise ConfigError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the configuration asks for {wanted}"
            )
        if not tensor.is_floating_point():
            raise ConfigError(f"tensor {name} has dtype {tensor.dtype}, which holds no weights")
    for name in state_dict:
        if name not in shapes and not _BUFFERS.search(name):
            raise ConfigError(f"tensor {name} is unknown; the nearest known one is {nearest(name, shapes)}")


def _check(model: LanguageModel, rules: list[Rule], state_dict: Mapping[str, Tensor]) -> None:
    """check_tensors for a model's parameters under their Hugging Face names."""
    own = {f"{_OURS}.{name}": tuple(p.shape) for name, p in model.method.named_parameters()}
    parameters = dict(model.decoder.named_parameters(remove_duplicate=False))
    shapes, optional = dict(own), set(own)
    for rule in rules:
        parts = rule.to_theirs(parameters[rule.ours])
        shapes.update({name: tuple(part.shape) for name, part in zip(rule.theirs, parts, strict=True)})
        if rule.ours in _tied(model.config):
            optional.update(rule.theirs)
    check_tensors(shapes, state_dict, optional)
