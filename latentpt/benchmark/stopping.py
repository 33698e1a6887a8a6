"""What thinking costs and what it is worth: a trained model at several thresholds, loss beside decoding time.

The model reads held-out text as it decodes, one token of every row at a time from a cache, and predicts at each. Given text
is the same at every threshold, so that only the thinking differs. Each threshold is timed twice, on the way there and on the
way back, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.generation.decode import Session
from latentpt.thoughts.cost import inference_flops_per_token
from latentpt.thoughts.measure import Sums, summed_loss
from latentpt.thoughts.model import LanguageModel


class Stopping(NamedTuple):
    """A model that stops thinking below one threshold."""

    threshold: float
    sums: Sums
    """Loss and thoughts of exact decoding on the held-out text."""
    flops: float
    """FLOPs per token of decoding so many thoughts, over a context that grows to the length of the text's rows."""
    seconds: float
    """Decoding of `tokens` tokens, with the head."""
    tokens: int
    """Tokens decoded in that time."""


@torch.no_grad()
def measure_thresholds(
    model: LanguageModel, batches: Sequence[Tensor], thresholds: Sequence[float], rows: int
) -> list[Stopping]:
    """Loss over all `batches` int64 [b, L + 1] at each threshold; decoding is timed on the first `rows` rows of the first.

    Raises ConfigError for a model that has no thoughts to leave out.
    """
    model.eval()
    ids = batches[0][:rows, :-1].to(next(model.parameters()).device)
    seconds = dict.fromkeys(thresholds, 0.0)
    model.method.stop_below(thresholds[0])
    _decode(model, ids[:, :4])  # the first time is no measurement
    for threshold in (*thresholds, *reversed(thresholds)):
        model.method.stop_below(threshold)
        seconds[threshold] += _decode(model, ids)
    found = []
    for threshold in thresholds:
        model.method.stop_below(threshold)
        sums = summed_loss(model, batches, exact=True)
        shares = [reached / sums.tokens for reached in sums.reached]
        flops = inference_flops_per_token(model.config, model.thoughts, ids.shape[1], shares)
        found.append(Stopping(threshold, sums, flops, seconds[threshold], 2 * ids.numel()))
    return found


def _decode(model: LanguageModel, ids: Tensor) -> float:
    """Seconds to read ids [B, n] token by token and to choose one after each."""
    session, start = Session(model, *ids.shape), time.perf_counter()
    for column in ids.unbind(1):
        model.decoder.head(session.step(column)).argmax(-1).tolist()
    return time.perf_counter() - start


def stopping_table(found: Sequence[Stopping]) -> str:
    """One line for each threshold; times are also given as shares of the first line's."""
    first = found[0]
    lines = ["threshold  thoughts    loss  FLOPs/token   tokens/s   time"]
    lines += [
        f"{one.threshold:9.4g}  {one.sums.thoughts:8.3f}  {one.sums.nats / one.sums.tokens:6.4f}  {one.flops:11.4g}  "
        f"{one.tokens / one.seconds:9.1f}  {one.seconds / first.seconds:5.2f}"
        for one in found
    ]
    return "\n".join(lines)
