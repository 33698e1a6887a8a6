"""Models as folders: read what others publish, write what others can load.

A model without latent slots is written as its family's stock class. Any other is written with a modeling file of its
own, which `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentpt.config import ConfigError, build
from latentpt.data.tokenizer import Tokenizer
from latentpt.hub import llama2c
from latentpt.hub.convert import check_expressible, check_tensors, from_hf, read_configs, stock_scale, to_hf
from latentpt.hub.layouts import LAYOUTS, MODEL_TYPES
from latentpt.hub.pieces import to_tokenizers
from latentpt.hub.published import published_thoughts
from latentpt.hub.recurrence import recurrence
from latentpt.hub.weights import read_json, read_weights
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.rotary import frequencies
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.registry import make_method

SHARD_BYTES = 4 << 30
"""Largest weight file of an export."""


_MODELING = Path(__file__).with_name("modeling_latentpt.py")
MODELING_FILES = (
    _MODELING,
    *(_MODELING.with_name(f"modeling_{part}.py") for part in ("decoder", "thoughts")),
)
"""What a model brings that no stock class thinks like."""
_OWN_CLASS = "LatentptForCausalLM"
OWN_TYPE, REASONER_TYPE = "latentpt", "latentpt_reasoner"
"""Types of exported models: thinking inside positions, and fine-tuned to reason in latents; of those the plain model is read."""
_TIED = ("decoder.head.weight",)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of special ids in both configurations of a folder."""


# ------------------------------------------------------------------------------------------------------ reading


def load_folder(path: str | Path, thoughts: Mapping[str, Any] | None = None) -> LanguageModel:
    """A model from a Hugging Face folder, an export of ours, a published checkpoint or a llama2.c .bin file.

    `thoughts` are fields of ThoughtsConfig that go before what the folder says. A folder that says nothing about
    thoughts is a plain model: given a thought method, its token slots read what they always did (embed_scale 1, or the
    architecture's own), so that a continued training starts where the old one ended. Weights keep their dtype; the model is in evaluation mode.
    Raises ConfigError, naming the file or tensor, for whatever does not fit.
    """
    config, state = _read(Path(path))
    try:
        if config.get("model_type") in (OWN_TYPE, REASONER_TYPE):
            state = {name: tensor for name, tensor in state.items() if not name.startswith("adapter.")}
            return _from_export(config, state, thoughts or {}).eval()
        given = dict(thoughts or {})
        if "latentpt" not in config and published_thoughts(config) is None:
            read_configs(config)  # refuses what cannot be read before the scale is asked for
            given.setdefault("embed_scale", stock_scale(config))
        return from_hf(config, state, given).eval()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def folder_config(path: str | Path) -> tuple[ModelConfig, float]:
    """The decoder of such a folder or file, and what its token embeddings are multiplied by; raises ConfigError."""
    config, _ = _read(Path(path), weights=False)
    try:
        if config.get("model_type") in (OWN_TYPE, REASONER_TYPE):
            size, thoughts = _export_configs(config, {})
        else:
            size, thoughts = read_configs(config)
        with torch.device("meta"):
            return size, make_method(thoughts, size).embed_scale
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors as they lie there."""
    if path.is_file() and path.suffix == ".bin":
        return llama2c.read_llama2c(path)
    if path.is_dir():
        return read_json(path / "config.json"), read_weights(path) if weights else {}
    raise ConfigError(f"{path}: is neither a folder with a config.json nor a llama2.c .bin file")


def _export_configs(
    config: Mapping[str, Any], thoughts: Mapping[str, Any]
) -> tuple[ModelConfig, ThoughtsConfig]:
    ours = config.get("latentpt")
    if not isinstance(ours, dict) or not {"model", "thoughts"} <= ours.keys():
        raise ConfigError("config.json has no latentpt entry with model and thoughts")
    return build(ModelConfig, ours["model"]), build(ThoughtsConfig, {**ours["thoughts"], **thoughts})


def _from_export(
    config: Mapping[str, Any], state: Mapping[str, Tensor], thoughts: Mapping[str, Any]
) -> LanguageModel:
    """The inverse of _with_modeling_file."""
    size, thinking = _export_configs(config, thoughts)
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


def special_ids(path: str | Path) -> dict[str, Any]:
    """Special ids, and whether a text begins with one, that a model's folder or llama2.c file names.

    Raises ConfigError for a file that is no JSON.
    """
    path = Path(path)
    if path.is_file():
        return dict(llama2c.IDS)
    found: dict[str, Any] = {}
    for name, keys in (
        ("config.json", SPECIAL),
        ("generation_config.json", SPECIAL),
        ("tokenizer_config.json", ("add_bos_token", "add_eos_token")),
    ):
        if (path / name).is_file():
            content = read_json(path / name)
            found |= {key: content[key] for key in keys if content.get(key) is not None}
    return found


# ------------------------------------------------------------------------------------------------------ writing


def export_folder(
    model: LanguageModel,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
    ids: Mapping[str, Any] | None = None,
) -> str:
    """Write `model` for transformers: weights in `dtype`, configuration, generation configuration, tokenizer and card.

    `ids` are special ids and tokenizer settings by transformers' names, as `special_ids` finds them; what they leave out is
    the end-of-document token. Returns why transformers cannot read the tokenizer, or an empty text if it can. The folder
    appears whole or not at all. Raises ConfigError if it is there already, or for a method that
    the modeling file does not know.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; name a new folder")
    stock = loading_class(model) != _OWN_CLASS
    config, state = _stock(model) if stock else _with_modeling_file(model)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config["use_cache"] = True
    given = dict(ids or {})
    if tokenizer is not None and tokenizer.eod_id is not None:
        given = {**dict.fromkeys(SPECIAL, tokenizer.eod_id), **given}
    special = {key: given[key] for key in SPECIAL if key in given}
    lacking = ""
    side = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    try:
        _write_json(side / "config.json", {**config, **special})
        _write_json(side / "generation_config.json", {**special, "do_sample": False})
        _write_weights(side, {name: tensor.to(dtype) for name, tensor in state.items()})
        for file in () if stock else MODELING_FILES:
            shutil.copyfile(file, side / file.name)
        if tokenizer is not None:
            lacking = _write_tokenizer(side, tokenizer, model.config.max_positions, given)
        if card is not None:
            (side / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        side.rename(folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)
    return lacking


def unrolled(model: LanguageModel) -> LanguageModel:
    """A loop as the plain decoder that computes the same: its blocks N + 1 times one after another, for stock classes.

    Parameters are shared with `model`; a file holds them N + 1 times. Raises ConfigError for a model that is no loop.
    """
    thoughts = model.thoughts
    if thoughts.method != "loop":
        raise ConfigError(
            f"thoughts.method = {thoughts.method} cannot be unrolled: only loop does nothing but run its blocks again"
        )
    size = model.config.model_copy(
        update={"preset": None, "num_layers": model.config.num_layers * thoughts.num_slots}
    )
    plain = ThoughtsConfig(method="vanilla", embed_scale=model.method.embed_scale)
    with torch.device("meta"):
        deep = LanguageModel(size, plain)
    layers = model.config.num_layers
    deep.decoder.blocks = nn.ModuleList(model.decoder.blocks[i % layers] for i in range(size.num_layers))
    for name in ("embedding", "position_embedding", "norm", "head"):
        setattr(deep.decoder, name, getattr(model.decoder, name))
    return deep.eval()


def loading_class(model: LanguageModel) -> str:
    """The class of transformers that loads an export: the family's own where that computes the same."""
    if model.thoughts.method != "vanilla":
        return _OWN_CLASS
    try:
        check_expressible(model.config)
    except ConfigError:
        return _OWN_CLASS
    written = LAYOUTS[MODEL_TYPES[model.config.family]].write_config(model.config)
    return str(written["architectures"][0])


def _stock(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the stock class, whose embedding scale is its own: the tables make up for c.

    A tied head reads the same table, so the final norm is divided by c: (c W_e) (h / c) = W_e h.
    """
    config, state = to_hf(model)
    del config["latentpt"]
    scale = model.method.embed_scale / stock_scale(config)
    rules = LAYOUTS[config["model_type"]].rules(model.config)
    theirs = {rule.ours: rule.theirs[0] for rule in rules}
    for ours in ("embedding.weight", "position_embedding.weight"):
        if ours in theirs and scale != 1:
            state[theirs[ours]] = state[theirs[ours]] * scale
    if model.config.tie_embeddings:
        state.pop(theirs["head.weight"])
        for ours, offset in (("norm.weight", model.config.norm_offset), ("norm.bias", 0.0)):
            if ours in theirs and scale != 1:
                state[theirs[ours]] = (state[theirs[ours]] + offset) / scale - offset
    return config, state


def _with_modeling_file(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of LatentptForCausalLM; the entry `latentpt` is for reading it back here."""
    size, thoughts = model.config, model.thoughts
    config = {
        "model_type": "latentpt",
        "architectures": [_OWN_CLASS],
        "auto_map": {
            "AutoConfig": f"{_MODELING.stem}.LatentptConfig",
            "AutoModelForCausalLM": f"{_MODELING.stem}.{_OWN_CLASS}",
        },
        **{name: getattr(size, name) for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions", "norm", "norm_eps", "norm_place",
            "norm_offset", "qk_norm", "activation", "bias", "parallel_residual", "positions", "logit_softcap",
        )},
        **_turns(size),
        "qkv_bias": size.qkv_biased,
        "out_bias": size.out_biased,
        "num_kv_heads": size.kv_heads,
        "head_size": size.head_width,
        "intermediate_size": size.mlp_size,
        "shared_head": size.tie_embeddings,
        **recurrence(model),
        "latentpt": {"model": size.model_dump(mode="json"), "thoughts": thoughts.model_dump(mode="json")},
    }  # fmt: skip
    return config, {name: p.detach() for name, p in model.named_parameters()}


def _turns(size: ModelConfig) -> dict[str, Any]:
    """Rotary frequencies as numbers, so that the modeling file need not know how each kind of scaling makes them."""
    if size.positions != "rotary":
        return {"rotary_frequencies": None}
    found, factor = frequencies(torch.zeros(1, dtype=torch.int64), size)
    dynamic = size.rope_scaling is not None and size.rope_scaling.kind == "dynamic"
    return {
        "rotary_frequencies": found.tolist(),
        "rotary_factor": factor,
        "rotary_limit": size.max_positions if dynamic else None,
    }


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
        _save(shards[0], folder / "model.safetensors")
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, folder / file)
        places.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """One file, with the mode that new files get here; safetensors would give its own, for the owner alone."""
    path.touch()
    mode = path.stat().st_mode
    # A file holds what is shared, as the blocks of an unrolled loop, once for every name.
    own: dict[int, str] = {}
    tensors = {
        name: tensor if own.setdefault(tensor.data_ptr(), name) == name else tensor.clone()
        for name, tensor in tensors.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def _write_tokenizer(
    folder: Path, tokenizer: Tokenizer, max_positions: int, given: Mapping[str, Any] | None = None
) -> str:
    """The tokenizer's own file, for a sentencepiece model also tokenizer.json, and what AutoTokenizer wants beside it.

    `given` are special ids and settings by transformers' names; the end-of-document token stands for ids that are not. The
    class is transformers' own, so that no code of the folder is needed. Returns why a sentencepiece model lies there alone,
    or an empty text.
    """
    given = {**dict.fromkeys(SPECIAL, tokenizer.eod_id), **(given or {})}
    adds: dict[str, Any] = {key: given[key] for key in ("add_bos_token", "add_eos_token") if key in given}
    if tokenizer.path.suffix == ".json":
        shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
        name = _named_by(tokenizers.Tokenizer.from_file(str(tokenizer.path)))
    else:
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
        try:
            converted = to_tokenizers(tokenizer)
        except ConfigError as error:
            return str(error)
        name = _named_by(converted)
        begin = name(given["bos_token_id"])
        if adds.get("add_bos_token") and begin is not None:
            ids = [(begin, given["bos_token_id"])]
            converted.post_processor = tokenizers.processors.TemplateProcessing(
                f"{begin} $A", f"{begin} $A {begin} $B", ids
            )
        converted.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # 4.57 adds token types otherwise
        **adds,
    }
    tokens = {key.removesuffix("_id"): name(given[key]) for key in SPECIAL}
    settings |= {key: token for key, token in tokens.items() if token is not None}
    _write_json(folder / "tokenizer_config.json", settings)
    return ""


def _named_by(vocabulary: tokenizers.Tokenizer) -> Callable[[Any], str | None]:
    """The text of an id, or of the first of several; None for what is no id."""

    def name(given: Any) -> str | None:
        index = given[0] if isinstance(given, list) and given else given
        return vocabulary.id_to_token(index) if isinstance(index, int) and index >= 0 else None

    return name


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
