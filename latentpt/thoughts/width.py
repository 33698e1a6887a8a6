"""muP: first weights and learning rates with which one learning rate serves all widths (Yang et al. 2022, arXiv 2203.03466).

With r = `model.mup_base_width` / d, for AdamW (its table 3, so that no factor goes into the forward pass and a trained
model is like any other):

                                      first standard deviation       learning rate
    embeddings, after their scale     1                              of a scale sqrt(2.5 base), at every width
    matrices that read the stream     ~ 1 / sqrt(d), as without      r
    head                              sqrt(r) of that without        r
    vectors                           as without                     1

Attention's 1 / D in place of 1 / sqrt(D) comes to the same where heads keep their width D and a wider model has more of
them, as in our ladders. At the base width, with the embedding scale sqrt(2.5 d), nothing is changed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig


@torch.no_grad()
def scale_weights(model: nn.Module, config: ModelConfig, embed_scale: float) -> None:
    """Bring fresh weights to the sizes of the table, if the configuration asks for it."""
    if config.mup_base_width is None:
        return
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.mul_(math.sqrt(2.5 * config.hidden_size) / embed_scale)
    head = model.get_submodule("decoder.head")
    assert isinstance(head, nn.Linear)
    head.weight.mul_(math.sqrt(config.mup_base_width / config.hidden_size))


def rates(model: nn.Module, config: ModelConfig, embed_scale: float) -> dict[Tensor, float]:
    """Factors on AdamW's learning rate where they are not 1."""
    if config.mup_base_width is None:
        return {}
    found: dict[Tensor, float] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            found[module.weight] = math.sqrt(2.5 * config.mup_base_width) / embed_scale
        elif isinstance(module, nn.Linear):
            found[module.weight] = config.mup_base_width / config.hidden_size
    return found
