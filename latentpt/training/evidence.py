"""What is kept of a step whose gradient was not finite, so that its cause can be found.

skipped/step-00000012/
    rank-00000.safetensors   samples int32 [rows, L + 1] in the order in which they were read, losses float32 [micro-batches]
    norms.json               where the samples lie, norms of gradients and parameters, whole and by layer
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from latentpt.files import write_text
from latentpt.training.layers import by_layer


def keep_evidence(
    folder: Path,
    rank: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    names: Sequence[str],
    gradients: Sequence[float],
    weights: Sequence[float],
) -> None:
    """Write one rank's tensors and, by the first, what all know; a disk that takes them not is told on stderr.

    `gradients` and `weights` are the norms of the parameters `names`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(content, folder / f"rank-{rank:05d}.safetensors")
        if rank == 0:
            told = {
                **facts,
                "not_finite": [
                    name for name, norm in zip(names, gradients, strict=True) if not math.isfinite(norm)
                ],
                "layers": _pairs(by_layer(names, gradients), by_layer(names, weights)),
                "parameters": _pairs(
                    dict(zip(names, gradients, strict=True)), dict(zip(names, weights, strict=True))
                ),
            }
            write_text(folder / "norms.json", json.dumps(told, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        print(
            f"warning: {folder} cannot be written ({error}); the training goes on",
            file=sys.stderr,
            flush=True,
        )


def _pairs(gradients: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, dict[str, float | str]]:
    return {
        name: {"gradient": _plain(gradients[name]), "weight": _plain(weights[name])} for name in gradients
    }


def _plain(value: float) -> float | str:
    """A number as JSON has it; what it has not is a word."""
    return value if math.isfinite(value) else str(value)
