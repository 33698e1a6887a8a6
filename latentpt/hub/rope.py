"""Rotary positions in a Hugging Face configuration: `rope_scaling` beside `rope_theta`, or all in `rope_parameters`."""

from __future__ import annotations

from typing import Any

from latentpt.config import ConfigError, nearest
from latentpt.hub.keys import Keys
from latentpt.modeling.config import ModelConfig

_KINDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
"""rope_type -> the keys that it has."""
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_OURS = {"original_max_position_embeddings": "original_positions"}


def read_rope(hf: Keys, theta_key: str = "rope_theta", share_key: str = "partial_rotary_factor", share: float = 1.0) -> dict[str, Any]:  # fmt: skip
    """Fields of ModelConfig: rope_theta, rotary_fraction and, where there is one, rope_scaling.

    Raises ConfigError, in one sentence, for a kind of scaling or a key of one that the decoder does not have.
    """
    rope = _parameters(hf)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KINDS:
        raise ConfigError(
            f"rope_type = {kind} is not supported; the nearest supported one is {nearest(str(kind), _KINDS)}"
        )
    for key in rope:
        if key not in (*_ALWAYS, *_KINDS[kind]):
            raise ConfigError(f"{key} of rope_type = {kind} is not supported; it has {', '.join(_KINDS[kind]) or 'no keys'}")  # fmt: skip
    fields = {
        "rope_theta": _agreed(rope, hf, "rope_theta", theta_key, 10000.0),
        "rotary_fraction": _agreed(rope, hf, "partial_rotary_factor", share_key, share),
    }
    if kind == "default":
        return fields
    given = {key: rope[key] for key in _KINDS[kind] if rope.get(key) is not None}
    if "original_max_position_embeddings" in _KINDS[kind]:
        given.setdefault("original_max_position_embeddings", hf["max_position_embeddings"])
        if hf.get("original_max_position_embeddings") is not None:  # it comes first, as in transformers
            given["original_max_position_embeddings"] = hf["original_max_position_embeddings"]
    if kind == "llama3":
        given |= {key: rope[key] for key in _KINDS[kind][2:]}
    scaling = {_OURS.get(key, key): value for key, value in given.items()}
    return fields | {"rope_scaling": {"kind": kind, **scaling}}


def _agreed(rope: dict[str, Any], hf: Keys, key: str, other: str, default: float) -> Any:
    """A value that stands in `rope` or, under one of two keys, beside it; in `rope` goes first, as in transformers."""
    beside = {name: hf[name] for name in (key, other) if hf.get(name) is not None}
    if key in rope:
        return rope[key]
    if len(set(beside.values())) > 1:
        raise ConfigError(" and ".join(f"{name} = {value}" for name, value in beside.items()) + " must agree")
    return next(iter(beside.values()), default)


def _parameters(hf: Keys) -> dict[str, Any]:
    """What either form says; both may be there if they say the same."""
    older, newer = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
    for name, value in (("rope_scaling", older), ("rope_parameters", newer)):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} must be an object, not {value!r}")
        for key, inner in value.items():
            if isinstance(inner, dict):
                raise ConfigError(
                    f"{name} has values of its own for {key}, which is not supported; all layers turn alike"
                )
    for key in older:
        if key in newer and newer[key] != older[key]:
            raise ConfigError(f"rope_scaling has {key} = {older[key]} and rope_parameters {newer[key]}; they must agree")  # fmt: skip
    return {**newer, **older}


def write_rope(config: ModelConfig, theta_key: str = "rope_theta") -> dict[str, Any]:
    """The entries that say the same in both forms, so that transformers of either kind reads them."""
    theirs: dict[str, Any] = {"rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        values = {key: getattr(scaling, _OURS.get(key, key)) for key in _KINDS[scaling.kind]}
        theirs = {
            "rope_type": scaling.kind,
            **{key: value for key, value in values.items() if value is not None},
        }
    return {
        theta_key: config.rope_theta,
        "rope_scaling": None if scaling is None else theirs,
        "rope_parameters": {**theirs, "rope_theta": config.rope_theta},
    }
