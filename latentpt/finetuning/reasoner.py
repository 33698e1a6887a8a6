"""A model that reasons in latents: the language model, its adapter, and the recipe by which it is used.

On disk it is a folder with

    model.safetensors    every parameter, adapter included, LoRA merged
    latent.json          architecture, thoughts, fill, markers, stage: the Recipe
    tokenizer.json       with the markers
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentpt.config import ConfigError, Section, build
from latentpt.data.tokenizer import Tokenizer, load_tokenizer
from latentpt.files import write_bytes, write_text
from latentpt.finetuning.answers import Extraction
from latentpt.finetuning.config import Mode
from latentpt.finetuning.fills import Adapter, Fill, Kind
from latentpt.finetuning.generate import Switch
from latentpt.hub.weights import read_weights
from latentpt.modeling.config import ModelConfig
from latentpt.seeding import stream
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

RECIPE = "latent.json"


class Recipe(Section):
    """How a fine-tuned model is used."""

    mode: Mode
    """How it was trained."""
    stage: int
    """Last stage it was trained at."""
    latents: int
    """Latents after a question (Coconut); 0 where the model itself decides."""
    markers: tuple[int, int, int] | None
    """Ids of <start>, <end> and <latent>; None where there are none."""
    end: int
    """Id that ends an answer."""
    kind: Kind | None
    """Fill of latents; None where there are none."""
    layer: int
    alpha: float
    top_p: float
    temperature: float
    inclusive: bool
    adapter: int
    """Width inside the adapter; 0: none."""
    switch: str
    """Who decides about latents while it generates."""
    switch_tau: float
    switch_most: int | None
    extraction: Extraction
    """How an answer is read."""
    model: ModelConfig
    thoughts: ThoughtsConfig

    def prompt(self, question: list[int], latents: int | None = None) -> list[int]:
        """Ids of a question as the model reads it; `latents` replaces the number it was trained with."""
        if self.markers is None or self.mode == "lt_tuning":
            return question
        count = self.latents if latents is None else latents
        return [*question, self.markers[0], *[self.markers[2]] * count, self.markers[1]]

    def decision(self) -> Switch:
        """Who decides about latents while it generates."""
        return Switch(self.switch, self.switch_tau, self.switch_most)  # type: ignore[arg-type]


@contextmanager
def seeded(seed: int, label: str) -> Iterator[None]:
    """Inside, torch's own random numbers, which modules of others draw from, follow from the seed and the label."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, label).initial_seed())
        yield


class Reasoner(nn.Module):
    """A language model and the adapter of its latents."""

    def __init__(self, language: LanguageModel, adapter: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.language = language
        self.adapter: Adapter | None = None
        if adapter:
            with seeded(seed, "adapter"):
                self.adapter = Adapter(language.config.hidden_size, adapter)
            self.adapter.to(next(language.parameters()).dtype)

    def fill(self, recipe: Recipe, kind: Kind | None = None) -> Fill:
        """How latents are filled; of a model without latents a fill that no token asks for."""
        latent = recipe.markers[2] if recipe.markers is not None else -1
        return Fill(
            kind or recipe.kind or "pause", latent, recipe.layer, recipe.alpha, recipe.top_p, recipe.temperature,
            recipe.inclusive, self.adapter,
        )  # fmt: skip


def save_reasoner(folder: Path, state: Mapping[str, Tensor], recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Write a reasoner's folder; latent.json comes last, so a folder without it is no reasoner."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).unlink(missing_ok=True)
    side = folder / "model.safetensors.tmp"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, side)
    side.replace(folder / "model.safetensors")
    write_bytes(folder / "tokenizer.json", tokenizer.path.read_bytes())
    write_text(folder / RECIPE, json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n")


def _inner(name: str) -> str:
    """A parameter's name in a reasoner; exports name those of the language model alone."""
    return name if name.startswith(("language.", "adapter.")) else f"language.{name}"


def load_reasoner(folder: Path) -> tuple[Reasoner, Recipe, Tokenizer]:
    """Read a reasoner's folder or its export, on the CPU, in evaluation mode; raises ConfigError naming what does not fit."""
    try:
        content: dict[str, Any] = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        tensors = {_inner(name): tensor for name, tensor in read_weights(folder).items()}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: is not the folder of a fine-tuned model ({error})") from None
    recipe = build(Recipe, content)
    reasoner = Reasoner(LanguageModel(recipe.model, recipe.thoughts), recipe.adapter)
    parameters = dict(reasoner.named_parameters())
    different = parameters.keys() ^ tensors.keys()
    if different:
        raise ConfigError(f"{folder}/model.safetensors: the tensor {min(different)} is missing or unknown")
    reasoner = reasoner.to(tensors["language.decoder.embedding.weight"].dtype)
    with torch.no_grad():
        for name, parameter in reasoner.named_parameters():
            if parameter.shape != tensors[name].shape:
                raise ConfigError(
                    f"{folder}/model.safetensors: tensor {name} has shape {tuple(tensors[name].shape)}, "
                    f"latent.json asks for {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])
    return reasoner.eval(), recipe, load_tokenizer(folder)
