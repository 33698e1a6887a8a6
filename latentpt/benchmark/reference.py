"""The published PonderLM-2 implementation as a user brings it: a checkout, and transformers 4.46 beside it.

Nothing of it is part of this project. Its model files are loaded by path, built at the size of one of our models and
given the same weights, so that both can be compared in numbers and in time.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from latentpt.config import ConfigError
from latentpt.hub import to_hf
from latentpt.thoughts.model import LanguageModel

_FILES = {"gpt_neox": "modeling_gpt_neox.py", "llama": "modeling_llama.py"}
_CLASSES = {"gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}


def load_reference(checkout: Path, model: LanguageModel, refinements: int) -> nn.Module:
    """The published model of the same family, size, thoughts and weights as ours.

    Raises ConfigError where the checkout, transformers 4.46 or the family is missing.
    """
    hf_config, state = to_hf(model)
    kind = hf_config["model_type"]
    if kind not in _FILES:
        raise ConfigError(f"the published code has no {kind} model; it has {', '.join(_FILES)}")
    module = _import(checkout, _FILES[kind])
    import transformers

    if not transformers.__version__.startswith("4.46"):
        raise ConfigError(
            f"the published code runs on transformers 4.46, found {transformers.__version__}; "
            "put a folder with transformers 4.46.1 first on PYTHONPATH"
        )
    config_name, class_name = _CLASSES[kind]
    hf_config.pop("latentpt")
    config = getattr(transformers, config_name)(
        **{k: v for k, v in hf_config.items() if k != "architectures"}
    )
    settings: dict[str, Any] = {
        "num_latent_thoughts": model.thoughts.num_thoughts,
        "num_jacobi_iterations": refinements,
        "random_jacobi_iterations": False,
        "scale_embeds": True,
        "interpolation": False,
        "recurrent_model": True,
        "pause_token_id": model.config.vocab_size - 1,
        "use_cache": False,
    }
    for name, value in settings.items():
        setattr(config, name, value)
    config._attn_implementation = "sdpa"
    published = getattr(module, class_name)(config)
    missing, unexpected = published.load_state_dict(state, strict=False)
    lost = [name for name in missing if "rotary" not in name and "bias" not in name.rsplit(".", 1)[-1]]
    if lost or unexpected:
        raise ConfigError(f"the published model does not take our weights: {[*lost, *unexpected][0]}")
    return published.to(next(model.parameters()).dtype)


def reference_loss(published: nn.Module, ids: Tensor) -> Tensor:
    """Its training loss on ids [B, L], all tokens labelled; packed rows have no padding to mask."""
    return published(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss


def _import(checkout: Path, file: str) -> ModuleType:
    found = sorted(checkout.rglob(f"model/modeling/{file}"))
    if not found:
        raise ConfigError(
            f"{checkout} is no checkout of the published code: it holds no model/modeling/{file}"
        )
    spec = importlib.util.spec_from_file_location(f"published_{found[0].stem}", found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
