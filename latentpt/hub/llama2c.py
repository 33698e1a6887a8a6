"""Read the .bin files of llama2.c: a header of integers, then all weights of a small LLaMA in float32.

    version 0    dim, hidden_dim, n_layers, n_heads, n_kv_heads, +-vocab_size, seq_len       int32 each
    version 1    "ak42", 1, the same seven, uint8 shared_classifier, zeros up to byte 256

A kind of matrix lies together for all layers. Queries and keys are turned in pairs (2 i, 2 i + 1), while ours are
turned in halves (i, i + D / 2), so the rows of each head are put into the other order here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentpt.config import ConfigError

IDS = {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True}
"""Special ids, the same in all of llama2.c's models; every text begins with the first."""

_MAGIC = 0x616B3432
_SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def read_llama2c(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The file as a Hugging Face LLaMA: (configuration, state dict).

    Raises ConfigError naming the file when it is no such file, is quantized, or its length is not what its header says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) < 28:
        raise ConfigError(f"{path}: is too short for a llama2.c file")
    version, sizes, tied, start = _header(path, content)
    for name in _SIZES:
        if not 0 < sizes[name] < 2**31:
            raise ConfigError(f"{path}: is no llama2.c file; its header gives {name} = {sizes[name]}")
    if sizes["dim"] % sizes["n_heads"] or sizes["n_heads"] % sizes["n_kv_heads"]:
        raise ConfigError(f"{path}: is no llama2.c file; {sizes['n_heads']} heads do not fit its sizes")
    shapes = (_layout_0 if version == 0 else _layout_1)(sizes, tied)
    wanted = start + 4 * sum(_count(shape) for _, shape in shapes)
    if len(content) != wanted:
        raise ConfigError(f"{path}: has {len(content)} bytes, but its header asks for {wanted}")
    flat = torch.frombuffer(bytearray(content[start:]), dtype=torch.float32)
    parts = flat.split([_count(shape) for _, shape in shapes])
    tensors = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
    return _config(sizes, tied), _state_dict(tensors, sizes, tied)


def _header(path: Path, content: bytes) -> tuple[int, dict[str, int], bool, int]:
    """(version, sizes, tied, where the weights begin)."""
    magic, version = struct.unpack_from("<Ii", content)
    if magic != _MAGIC:
        sizes = dict(zip(_SIZES, struct.unpack_from("<7i", content), strict=True))
        tied = sizes["vocab_size"] > 0
        sizes["vocab_size"] = abs(sizes["vocab_size"])
        return 0, sizes, tied, 28
    if version != 1:
        raise ConfigError(
            f"{path}: is a llama2.c file of version {version} (2 is quantized); supported are 0 and 1"
        )
    if len(content) < 256:
        raise ConfigError(f"{path}: is too short for a llama2.c file")
    return 1, dict(zip(_SIZES, struct.unpack_from("<7i", content, 8), strict=True)), content[36] != 0, 256


_Shapes = list[tuple[str, tuple[int, ...]]]


def _matrices(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    dim, hidden, layers = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"]
    kv = dim // sizes["n_heads"] * sizes["n_kv_heads"]
    return {
        "attention_norm": (layers, dim), "wq": (layers, dim, dim), "wk": (layers, kv, dim), "wv": (layers, kv, dim),
        "wo": (layers, dim, dim), "ffn_norm": (layers, dim), "w1": (layers, hidden, dim), "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim), "embedding": (sizes["vocab_size"], dim), "norm": (dim,),
        "head": (sizes["vocab_size"], dim), "angles": (sizes["seq_len"], dim // sizes["n_heads"]),
    }  # fmt: skip


def _named(sizes: dict[str, int], names: str) -> _Shapes:
    shapes = _matrices(sizes)
    return [(name, shapes[name]) for name in names.split()]


def _layout_0(sizes: dict[str, int], tied: bool) -> _Shapes:
    # `angles` are tables of cos and sin, half a head's width each; they are constants
    names = "embedding attention_norm wq wk wv wo ffn_norm w1 w2 w3 norm angles"
    return _named(sizes, names if tied else f"{names} head")


def _layout_1(sizes: dict[str, int], tied: bool) -> _Shapes:
    names = "attention_norm ffn_norm norm embedding wq wk wv wo w1 w2 w3"
    return _named(sizes, names if tied else f"{names} head")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from pairs to halves: 0, 2, 4, .., 1, 3, 5, .."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _config(sizes: dict[str, int], tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["hidden_dim"],
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "vocab_size": sizes["vocab_size"],
        "max_position_embeddings": sizes["seq_len"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
    }


def _state_dict(tensors: dict[str, Tensor], sizes: dict[str, int], tied: bool) -> dict[str, Tensor]:
    state = {"model.embed_tokens.weight": tensors["embedding"], "model.norm.weight": tensors["norm"]}
    if not tied:
        state["lm_head.weight"] = tensors["head"]
    names = {
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "wq", "self_attn.k_proj": "wk", "self_attn.v_proj": "wv", "self_attn.o_proj": "wo",
        "mlp.gate_proj": "w1", "mlp.down_proj": "w2", "mlp.up_proj": "w3",
    }  # fmt: skip
    heads = {"wq": sizes["n_heads"], "wk": sizes["n_kv_heads"]}
    for layer in range(sizes["n_layers"]):
        for theirs, ours in names.items():
            weight = tensors[ours][layer]
            state[f"model.layers.{layer}.{theirs}.weight"] = (
                _halves(weight, heads[ours]) if ours in heads else weight
            )
    return state
