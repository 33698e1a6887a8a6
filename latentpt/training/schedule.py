"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from latentpt.run.sections import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, total: int) -> float:
    """Learning rate of optimizer step `step` (the first is 0) of `total`.

    Warm-up rises linearly and reaches `peak` in its last step. With p the share of the rest that is done:

        cosine     floor + (1 - floor) (1 + cos(pi p)) / 2     (Loshchilov & Hutter 2017, arXiv 1608.03983)
        wsd        1, then linearly down to floor in the decay (Hu et al. 2024, arXiv 2404.06395)
        constant   1
    """
    warmup = _steps(schedule.warmup, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    begin = warmup if schedule.kind == "cosine" else max(warmup, total - _steps(schedule.decay, total))
    done = min(1.0, max(0.0, (step + 1 - begin) / max(1, total - begin)))
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return peak * (schedule.floor + (1 - schedule.floor) * shape)


def _steps(length: float, total: int) -> int:
    """Lengths below 1 are fractions of the training, others numbers of steps."""
    return round(length * total) if length < 1 else round(length)
