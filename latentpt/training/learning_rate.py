"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from latentpt.run.sections import LearningRateConfig


def learning_rate(shape: LearningRateConfig, peak: float, step: int, total: int) -> float:
    """Learning rate of optimizer step `step` (the first is 0) of `total`, `peak` times a shape.

    Warm-up rises linearly and reaches `peak` in its last step. With p the share of the rest that is done:

        cosine     floor + (1 - floor) (1 + cos(pi p)) / 2     (Loshchilov & Hutter 2017, arXiv 1608.03983)
        wsd        1, then linearly down to floor in the decay (Hu et al. 2024, arXiv 2404.06395)
        constant   1
    """
    warmup, decay = shape.lengths(total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape.kind == "constant":
        return peak
    begin = warmup if shape.kind == "cosine" else max(warmup, total - decay)
    done = min(1.0, max(0.0, (step + 1 - begin) / max(1, total - begin)))
    left = (1 + math.cos(math.pi * done)) / 2 if shape.kind == "cosine" else 1 - done
    return peak * (shape.floor + (1 - shape.floor) * left)
