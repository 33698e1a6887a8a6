"""Read the weights of a folder somebody else made: nothing in it is executed, and nothing outside it is opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from torch import Tensor

from latentpt.config import ConfigError

_WHOLE = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ConfigError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder by name, on the CPU.

    Reads model.safetensors or pytorch_model.bin, whole or sharded by an index file; safetensors are preferred. Raises
    ConfigError, naming the file, when there are none, when a file is damaged or holds anything but tensors, or when an
    index names a file outside the folder.
    """
    for name in _WHOLE:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise ConfigError(f"{folder}: holds no weights; expected {' or '.join(_WHOLE)}, or its .index.json")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConfigError(f"{index}: has no weight_map of tensor names to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, places.values()))):
        # A plain name stays in the folder; links inside it are its owner's (the hub's own cache is made of them).
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise ConfigError(f"{index}: names the file {name!r}, which lies outside the folder")
        if not (index.parent / name).is_file():
            raise ConfigError(f"{index}: names the file {name}, which is missing")
        for tensor_name, tensor in _read_file(index.parent / name).items():
            if places.get(tensor_name) != name:
                raise ConfigError(
                    f"{index}: says that {tensor_name} lies in {places.get(tensor_name)}, but it lies in {name}"
                )
            tensors[tensor_name] = tensor
    missing = next((name for name in places if name not in tensors), None)
    if missing is not None:
        raise ConfigError(f"{index}: says that {missing} lies in {places[missing]}, which does not have it")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: is damaged ({error})") from None
        return tensors
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path}: holds more than tensors and is not opened; have it saved as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ConfigError(f"{path}: must hold tensors by name and nothing else")
    return tensors
