"""A fine-tuned model as a Hugging Face folder whose `generate` gives the same tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from latentpt.config import ConfigError
from latentpt.data.tokenizer import Tokenizer
from latentpt.finetuning.reasoner import RECIPE, Reasoner, Recipe
from latentpt.hub.folders import (
    _MODELING,
    MODELING_FILES,
    REASONER_TYPE,
    _with_modeling_file,
    _write_json,
    _write_tokenizer,
    _write_weights,
)

_LATENTS = _MODELING.with_name("modeling_latents.py")


def export_reasoner(
    reasoner: Reasoner,
    recipe: Recipe,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    title: str | None = None,
) -> None:
    """Write the folder: weights in `dtype`, configuration, tokenizer, the modeling files, a card, the recipe.

    The folder appears whole or not at all. Raises ConfigError if it is there already, or for thoughts that the modeling
    files do not know.
    """
    folder = Path(folder)
    if not reasoner.language.method.whole:
        raise ConfigError(
            f"thoughts.method = {reasoner.language.thoughts.method} with its carry or span of layers cannot be exported to "
            "transformers with latents in the sequence; the nearest method that can is latent"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; name a new folder")
    config, state = _with_modeling_file(reasoner.language)
    if reasoner.adapter is not None:
        state |= {f"adapter.{name}": p.detach() for name, p in reasoner.adapter.named_parameters()}
    fill = reasoner.fill(recipe)
    config |= {
        "model_type": REASONER_TYPE,
        "architectures": ["LatentReasonerForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{_LATENTS.stem}.LatentReasonerConfig",
            "AutoModelForCausalLM": f"{_LATENTS.stem}.LatentReasonerForCausalLM",
        },
        "fill": fill.kind,
        "latent_token": fill.latent_token,
        "fill_block": fill.block(reasoner.language.config) if recipe.kind not in (None, "pause", "soft") else None,
        "alpha": fill.alpha,
        "fill_top_p": fill.top_p,
        "fill_temperature": fill.temperature,
        "inclusive": fill.inclusive,
        "adapter_size": recipe.adapter,
        "switch": recipe.switch,
        "switch_tau": recipe.switch_tau,
        "switch_most": recipe.switch_most,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }  # fmt: skip
    ends = {"eos_token_id": recipe.end, "bos_token_id": recipe.end, "pad_token_id": recipe.end}
    side = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    try:
        _write_json(side / "config.json", {**config, **ends})
        _write_json(side / "generation_config.json", {**ends, "do_sample": False})
        _write_weights(side, {name: tensor.to(dtype) for name, tensor in state.items()})
        for file in (*MODELING_FILES, _LATENTS):
            shutil.copyfile(file, side / file.name)
        _write_tokenizer(side, tokenizer, reasoner.language.config.max_positions)
        _write_json(side / RECIPE, recipe.model_dump(mode="json"))
        (side / "README.md").write_text(
            card(title or folder.name, reasoner, recipe, tokenizer), encoding="utf-8"
        )
        if folder.exists():
            folder.rmdir()
        side.rename(folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)


def card(name: str, reasoner: Reasoner, recipe: Recipe, tokenizer: Tokenizer) -> str:
    """Markdown for README.md."""
    parameters = sum(parameter.numel() for parameter in reasoner.parameters())
    suffix = "\\n" + tokenizer.decode(recipe.prompt([]))
    thinking = {
        "lt_tuning": "It writes a chain of thought and thinks a latent where it is unsure.",
        "coconut": f"It thinks {recipe.latents} latents after the question and then answers.",
    }.get(recipe.mode, f"It was trained in the mode {recipe.mode}.")
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- latentpt
---
# {name}

A language model of {parameters:,} parameters, fine-tuned with latentpt to reason in continuous space. {thinking}

```python
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
ids = tokenizer("YOUR QUESTION{suffix}", return_tensors="pt", add_special_tokens=False)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))
```

Pad batches on the left. The folder brings its own modeling files, which need only torch and transformers (4.57 or later).
"""
