"""Models as folders: read what others publish, write what others can load.

A model without latent slots is written as its family's stock class. Any other is written with a modeling file of its
own, which `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentpt.config import ConfigError, build, nearest
from latentpt.data.tokenizer import Tokenizer
from latentpt.hub.convert import check_expressible, check_tensors, from_hf, to_hf
from latentpt.hub.layouts import LAYOUTS, MODEL_TYPES
from latentpt.hub.llama2c import read_llama2c
from latentpt.hub.pieces import to_tokenizers
from latentpt.hub.published import published_thoughts
from latentpt.hub.weights import read_json, read_weights
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

SHARD_BYTES = 4 << 30
"""Largest weight file of an export."""


class _Ends(NamedTuple):
    """Parameters before the first and after the last block of an architecture."""

    tables: tuple[str, ...]
    norm: tuple[str, ...]
    head: str


_ENDS = {
    "gpt_neox": _Ends(
        ("gpt_neox.embed_in.weight",),
        ("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"),
        "embed_out.weight",
    ),
    "llama": _Ends(("model.embed_tokens.weight",), ("model.norm.weight",), "lm_head.weight"),
    "gpt2": _Ends(
        ("transformer.wte.weight", "transformer.wpe.weight"),
        ("transformer.ln_f.weight", "transformer.ln_f.bias"),
        "lm_head.weight",
    ),
}

_MODELING = Path(__file__).with_name("modeling_latentpt.py")
_OWN_CLASS = "LatentptForCausalLM"
OWN_TYPE, REASONER_TYPE = "latentpt", "latentpt_reasoner"
"""Types of exported models: thinking inside positions, and fine-tuned to reason in latents; of those the plain model is read."""
_TIED = ("decoder.head.weight",)
EXPORTED = (
    "latent", "latent_mixture", "pause", "loop", "ponder", "ponder_hidden", "sequential_hidden_decoding",
)  # fmt: skip
"""Methods with latent slots that the modeling file thinks by."""


# ------------------------------------------------------------------------------------------------------ reading


def load_folder(path: str | Path, thoughts: Mapping[str, Any] | None = None) -> LanguageModel:
    """A model from a Hugging Face folder, an export of ours, a published checkpoint or a llama2.c .bin file.

    `thoughts` are fields of ThoughtsConfig that go before what the folder says. A folder that says nothing about
    thoughts is a plain model: given a thought method, its token slots read what they always did (embed_scale 1), so
    that a continued training starts where the old one ended. Weights keep their dtype; the model is in evaluation mode.
    Raises ConfigError, naming the file or tensor, for whatever does not fit.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".bin":
        config, state = read_llama2c(path)
    elif path.is_dir():
        config = read_json(path / "config.json")
        state = read_weights(path)
    else:
        raise ConfigError(f"{path}: is neither a folder with a config.json nor a llama2.c .bin file")
    try:
        if config.get("model_type") in (OWN_TYPE, REASONER_TYPE):
            state = {name: tensor for name, tensor in state.items() if not name.startswith("adapter.")}
            return _from_export(config, state, thoughts or {}).eval()
        given = dict(thoughts or {})
        if "latentpt" not in config and published_thoughts(config) is None:
            given.setdefault("embed_scale", 1.0)
        return from_hf(config, state, given).eval()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _from_export(
    config: Mapping[str, Any], state: Mapping[str, Tensor], thoughts: Mapping[str, Any]
) -> LanguageModel:
    """The inverse of _with_modeling_file."""
    ours = config.get("latentpt")
    if not isinstance(ours, dict) or not {"model", "thoughts"} <= ours.keys():
        raise ConfigError("config.json has no latentpt entry with model and thoughts")
    size = build(ModelConfig, ours["model"])
    thinking = build(ThoughtsConfig, {**ours["thoughts"], **thoughts})
    with torch.device("meta"):
        parameters = LanguageModel(size, thinking).named_parameters(remove_duplicate=False)
        shapes = {name: tuple(p.shape) for name, p in parameters}
    optional = _TIED if size.tie_embeddings else ()
    check_tensors(shapes, state, optional)
    model = LanguageModel(size, thinking).to(state["decoder.embedding.weight"].dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model


# ------------------------------------------------------------------------------------------------------ writing


def export_folder(
    model: LanguageModel,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write `model` for transformers: weights in `dtype`, configuration, generation configuration, tokenizer and card.

    Returns why transformers cannot read the tokenizer, or an empty text if it can. The folder appears whole or not at
    all. Raises ConfigError if it is there already, or for a method that transformers cannot be taught.
    """
    folder = Path(folder)
    if not model.method.whole:
        raise ConfigError(
            f"thoughts.method = {model.thoughts.method} with its carry or span of layers cannot be exported to "
            "transformers; the nearest method that can is latent"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; name a new folder")
    stock = loading_class(model) != _OWN_CLASS
    config, state = _stock(model) if stock else _with_modeling_file(model)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config["use_cache"] = True
    ends = {} if tokenizer is None or tokenizer.eod_id is None else {"eos_token_id": tokenizer.eod_id}
    starts = {"bos_token_id": ends["eos_token_id"], "pad_token_id": ends["eos_token_id"]} if ends else {}
    lacking = ""
    side = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    try:
        _write_json(side / "config.json", {**config, **ends, **starts})
        _write_json(side / "generation_config.json", {**ends, **starts, "do_sample": False})
        _write_weights(side, {name: tensor.to(dtype) for name, tensor in state.items()})
        if not stock:
            shutil.copyfile(_MODELING, side / _MODELING.name)
        if tokenizer is not None:
            lacking = _write_tokenizer(side, tokenizer, model.config.max_positions)
        if card is not None:
            (side / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        side.rename(folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)
    return lacking


def loading_class(model: LanguageModel) -> str:
    """The class of transformers that loads an export: the family's own where that computes the same."""
    if model.method.slots > 1:
        return _OWN_CLASS
    try:
        check_expressible(model.config)
    except ConfigError:
        return _OWN_CLASS
    architecture: str = LAYOUTS[MODEL_TYPES[model.config.family]].write_config(model.config)["architectures"][
        0
    ]
    return architecture


def _stock(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the stock class, which knows no embedding scale c: the tables are multiplied by it.

    A tied head reads the same table, so the final norm is divided by c: (c W_e) (h / c) = W_e h.
    """
    config, state = to_hf(model)
    del config["latentpt"]
    scale = model.method.embed_scale
    ends = _ENDS[config["model_type"]]
    for name in ends.tables:
        state[name] = state[name] * scale
    if model.config.tie_embeddings:
        state.pop(ends.head)
        for name in ends.norm:
            state[name] = state[name] / scale
    return config, state


def _with_modeling_file(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of LatentptForCausalLM; the entry `latentpt` is for reading it back here."""
    size, thoughts, method = model.config, model.thoughts, model.method
    if method.slots > 1 and thoughts.method not in EXPORTED:
        raise ConfigError(
            f"thoughts.method = {thoughts.method} has no export yet; the nearest method that has is "
            f"{nearest(thoughts.method, EXPORTED)}"
        )
    config = {
        "model_type": "latentpt",
        "architectures": [_OWN_CLASS],
        "auto_map": {
            "AutoConfig": f"{_MODELING.stem}.LatentptConfig",
            "AutoModelForCausalLM": f"{_MODELING.stem}.{_OWN_CLASS}",
        },
        **{name: getattr(size, name) for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions", "norm", "norm_eps", "activation",
            "bias", "parallel_residual", "positions", "rotary_size", "rope_theta",
        )},
        "num_kv_heads": size.kv_heads,
        "head_size": size.head_width,
        "intermediate_size": size.mlp_size,
        "shared_head": size.tie_embeddings,
        "method": thoughts.method,
        "num_thoughts": thoughts.num_thoughts,
        "visibility": method.visibility.name.lower(),
        "embed_scale": method.embed_scale,
        "pause_token": getattr(method, "row", 0),
        "top_k_mixture": thoughts.top_k,
        "cumulative": thoughts.cumulative,
        "latentpt": {"model": size.model_dump(mode="json"), "thoughts": thoughts.model_dump(mode="json")},
    }  # fmt: skip
    return config, {name: p.detach() for name, p in model.named_parameters()}


def _write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """model.safetensors, or several files and their index where it would be larger than SHARD_BYTES."""
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in state.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor.cpu().contiguous()
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, max_positions: int) -> str:
    """The tokenizer's own file, for a sentencepiece model also tokenizer.json, and what AutoTokenizer wants beside it.

    Returns why a sentencepiece model lies there alone, or an empty text.
    """
    if tokenizer.path.suffix == ".json":
        shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
        end = None if tokenizer.eod_id is None else tokenizer.decode([tokenizer.eod_id])
    else:
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
        try:
            converted = to_tokenizers(tokenizer)
        except ConfigError as error:
            return str(error)
        converted.save(str(folder / "tokenizer.json"))
        end = None if tokenizer.eod_id is None else converted.id_to_token(tokenizer.eod_id)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # 4.57 adds token types otherwise
    }
    if end is not None:
        settings |= {"eos_token": end, "bos_token": end, "pad_token": end}
    _write_json(folder / "tokenizer_config.json", settings)
    return ""


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
