"""Low-rank adaptation (arXiv 2106.09685) of the projection layers, by peft.

The fused queries, keys and values come out of one matrix in three parts, and only some slots ask for queries; their layer
adds the update to the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentpt.config import ConfigError
from latentpt.finetuning.config import LoraConfig
from latentpt.finetuning.reasoner import seeded
from latentpt.modeling.attention import QKV
from latentpt.modeling.decoder import Decoder

PROJECTIONS = ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]


def add_lora(decoder: Decoder, config: LoraConfig, trained_rows: list[int], seed: int) -> None:
    """Freeze a decoder, put trainable updates beside its projections, and let only `trained_rows` of its tables learn.

    The updates begin at zero; their first factors follow from the seed.
    Raises ConfigError when peft is not installed.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
        from peft.tuners.lora import Linear as LoraLinear
    except ImportError:
        raise ConfigError(
            "training.lora needs the package peft; pip install -c constraints.txt -e '.[lora]'"
        ) from None

    class LoraQKV(LoraLinear):
        """The update of the fused projection, added to its parts."""

        heads = property(lambda self: self.base_layer.heads)
        kv_heads = property(lambda self: self.base_layer.kv_heads)
        width = property(lambda self: self.base_layer.width)

        def forward(self, x: Tensor, read: slice | None) -> tuple[Tensor, ...]:
            """As QKV.forward."""
            parts: tuple[Tensor, ...] = self.base_layer(x, read)
            if self.disable_adapters or self.merged:
                return parts
            base, name = self.base_layer, self.active_adapters[0]
            down = self.lora_A[name](x)
            update = (self.lora_B[name](down) * self.scaling[name]).unflatten(-1, (-1, base.width))
            if read is None:
                updates = update.split([base.heads + base.kv_heads, base.kv_heads], dim=-2)
            else:
                q, *rest = update.split([base.heads, base.kv_heads, base.kv_heads], dim=-2)
                updates = (q[:, :, read], *rest)
            return tuple(part + more for part, more in zip(parts, updates, strict=True))

    peft = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=rf".*({'|'.join(name.replace('.', '[.]') for name in PROJECTIONS)})",
    )
    peft._register_custom_module({QKV: LoraQKV})
    with seeded(seed, "lora"):
        inject_adapter_in_model(peft, decoder)
    for table in {decoder.embedding.weight, decoder.head.weight}:
        table.requires_grad_(True)
        table.register_hook(_Only(trained_rows))


class _Only:
    """A gradient hook that leaves the gradient of some rows and no other."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __call__(self, gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[self.rows] = gradient[self.rows]
        return kept


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of a module under the names they have without LoRA, with its updates added."""
    from_layers: dict[str, Tensor] = {}
    skipped: set[str] = set()
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            skipped.add(f"{name}.")
            from_layers |= _merged(name, layer)
    plain = {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if not any(name.startswith(prefix) for prefix in skipped)
    }
    return plain | from_layers


def _merged(name: str, layer: Any) -> Mapping[str, Tensor]:
    adapter = layer.active_adapters[0]
    weight = layer.base_layer.weight.detach()
    found = {f"{name}.weight": weight + layer.get_delta_weight(adapter).detach().to(weight.dtype)}
    if layer.base_layer.bias is not None:
        found[f"{name}.bias"] = layer.base_layer.bias.detach()
    return found
