"""Which weights are these: a short name of a model that is the same wherever it lies."""

from __future__ import annotations

import hashlib

from latentpt.thoughts.model import LanguageModel


def identity(model: LanguageModel, asked: str = "") -> str:
    """A hash of a model's configuration, of the threshold below which its tokens stop, of a sample of its weights, and of what it is `asked` with.

    Every parameter gives its ends and a thousand entries between them; the same on every device.
    """
    halting = model.method.halting
    stops = "" if halting is None else f" {halting.threshold}"
    digest = hashlib.sha256(f"{model.config} {model.thoughts} {asked}{stops}".encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        spread = flat[:: max(1, len(flat) // 1000)]
        digest.update(f"{name} {flat[:8].tolist()} {flat[-8:].tolist()} {spread.tolist()}".encode())
    return digest.hexdigest()
