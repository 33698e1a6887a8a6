"""Weights in and out: Hugging Face configuration and state dict <-> LanguageModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from latentpt.config import ConfigError, nearest
from latentpt.hub.layouts import LAYOUTS, MODEL_TYPES, Rule
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

# Buffers that some transformers versions save beside the parameters; they hold constants.
_BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|attention\.bias|attention\.masked_bias|attn\.bias|attn\.masked_bias)$"
)
_OURS = "latentpt"


def from_hf(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], thoughts: Mapping[str, Any] | None = None
) -> LanguageModel:
    """A model from a Hugging Face configuration (`model_type` llama, gpt_neox or gpt2) and state dict.

    `thoughts` are fields of ThoughtsConfig, e.g. {"method": "latent", "num_thoughts": 2, "refinements": 3}; fields left
    out come from the configuration's own `latentpt` entry, if `to_hf` wrote one. The embedding scale is the
    method's own, except that vanilla reads weights as transformers does, unscaled. Raises ConfigError, in one
    sentence, for an architecture, a feature, a shape or a name that does not fit. The model has the dtype of the
    state dict's embedding.
    """
    kind = config.get("model_type", "")
    if kind not in LAYOUTS:
        raise ConfigError(
            f"model_type = {kind} is not supported; the nearest supported one is {nearest(kind, LAYOUTS)}"
        )
    layout = LAYOUTS[kind]
    try:
        size = ModelConfig(vocab_size=config["vocab_size"], **layout.read_config(config))
        thinking = ThoughtsConfig(**_thoughts(config, thoughts or {}))
    except KeyError as missing:
        raise ConfigError(f"the {kind} configuration has no {missing.args[0]}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{where}: {problem['msg']}" if where else problem["msg"]) from None
    rules = layout.rules(size)
    model = LanguageModel(size, thinking)
    dtype = state_dict[rules[0].theirs[0]].dtype if rules[0].theirs[0] in state_dict else None
    model = model.to(dtype)
    _load(model, rules, state_dict)
    return model


def to_hf(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of from_hf: (configuration, state dict), a linear re-layout of the parameters.

    How the model thinks is kept under the configuration's `latentpt` entry.
    """
    layout = LAYOUTS[MODEL_TYPES[model.config.family]]
    ours = dict(model.decoder.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    for rule in layout.rules(model.config):
        state.update(zip(rule.theirs, rule.to_theirs(ours[rule.ours].detach()), strict=True))
    state.update({f"{_OURS}.{name}": p.detach() for name, p in model.method.named_parameters()})
    thinking = {**model.thoughts.model_dump(mode="json"), "embed_scale": model.method.embed_scale}
    config = {**layout.write_config(model.config), "vocab_size": model.config.vocab_size, _OURS: thinking}
    return config, {name: tensor.contiguous() for name, tensor in state.items()}


def _thoughts(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The thoughts' fields: given ones before written ones before defaults."""
    written = dict(config.get(_OURS) or {})
    if given.get("method", written.get("method")) != written.get("method"):
        written = {}  # another method: its solver and scale are not this one's
    fields = {**written, **given}
    if fields.get("method", "vanilla") == "vanilla":
        fields.setdefault("embed_scale", 1.0)
    return fields


def _load(model: LanguageModel, rules: list[Rule], state_dict: Mapping[str, Tensor]) -> None:
    """Fill every parameter, or raise ConfigError naming the first tensor that is missing, superfluous or misshapen."""
    wanted = {name for rule in rules for name in rule.theirs}
    tied = {"head.weight"} if model.config.tie_embeddings else set()
    own = dict(model.method.named_parameters())
    known = wanted | {f"{_OURS}.{name}" for name in own}
    for name in state_dict:
        if name not in known and not _BUFFERS.search(name):
            raise ConfigError(f"tensor {name} is unknown; the nearest known one is {nearest(name, known)}")
    parameters = dict(model.decoder.named_parameters(remove_duplicate=False))
    for rule in rules:
        if rule.ours in tied:
            continue
        for name in rule.theirs:
            if name not in state_dict:
                raise ConfigError(f"tensor {name} is missing")
        _fill(parameters[rule.ours], rule, [state_dict[name] for name in rule.theirs])
    for name, parameter in own.items():
        theirs = f"{_OURS}.{name}"
        if theirs in state_dict:
            parameter.data.copy_(state_dict[theirs])


def _fill(parameter: Tensor, rule: Rule, tensors: list[Tensor]) -> None:
    expected = [tuple(part.shape) for part in rule.to_theirs(parameter.data)]
    for name, tensor, shape in zip(rule.theirs, tensors, expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the configuration asks for {shape}"
            )
    parameter.data.copy_(rule.to_ours(tensors))
