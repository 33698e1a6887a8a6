"""Time decoding and prefill, beside another implementation where one is given.

The other implementation is a transformers model with the same weights (see latentpt.benchmark.reference). Wall time is
what a user waits for; processor time, of all threads together, says more on a machine that others use too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.generation.decode import Session, generate
from latentpt.generation.prefill import Prefill
from latentpt.thoughts.model import LanguageModel


class Timing(NamedTuple):
    """How long one way of doing something took."""

    name: str
    wall: float
    """Seconds."""
    processor: float
    """Seconds of all threads together."""
    tokens: int
    """Tokens read or written in that time."""


def time_decoding(
    model: LanguageModel, prompt: Tensor, new_tokens: int, published: Any = None
) -> list[Timing]:
    """Greedy decoding of `new_tokens` after prompt int64 [B, L]: ours, and the published `generate`.

    Raises ValueError when both do not write the same tokens.
    """
    rows, length = prompt.shape
    results: dict[str, list[list[int]]] = {}

    def ours() -> None:
        results["ours"] = generate(model, prompt.tolist(), new_tokens)

    def theirs() -> None:
        out = published.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False, use_cache=True, pad_token_id=0,
        )  # fmt: skip
        results["theirs"] = out[:, length:].tolist()

    timings = [_timed("ours", ours, rows * new_tokens)]
    if published is not None:
        timings.append(_timed("published", theirs, rows * new_tokens))
        same = sum(
            a == b
            for x, y in zip(results["ours"], results["theirs"], strict=True)
            for a, b in zip(x, y, strict=True)
        )
        if same < rows * new_tokens:
            raise ValueError(f"only {same} of {rows * new_tokens} tokens are those of the published code")
    return timings


@torch.no_grad()
def time_prefill(
    models: dict[str, LanguageModel], prompt: Tensor, prefills: dict[str, Prefill], published: Any = None
) -> list[Timing]:
    """Reading prompt int64 [B, L] up to the first logits: each model by the prefill of the same name, then the published.

    The published code's prefill is its N + K + 1 growing, refining and final passes.
    """
    timings = []
    for name, model in models.items():

        def ours(model: LanguageModel = model, prefill: Prefill = prefills[name]) -> None:
            hidden = Session(model, *prompt.shape).extend(prompt, prefill)
            model.decoder.head(hidden[:, -1])

        timings.append(_timed(name, ours, prompt.numel()))
    if published is not None:

        def theirs() -> None:
            mask = torch.ones_like(prompt)
            published.generate(
                prompt, attention_mask=mask, max_new_tokens=1, do_sample=False, use_cache=True, pad_token_id=0
            )

        timings.append(_timed("published", theirs, prompt.numel()))
    return timings


def _timed(name: str, work: Callable[[], None], tokens: int) -> Timing:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Timing(name, time.perf_counter() - wall, time.process_time() - processor, tokens)


def timing_table(timings: list[Timing]) -> str:
    """One line for each: seconds, tokens a second, and the last one's time in multiples of it."""
    last = timings[-1]
    lines = [f"{'':16} {'wall s':>9} {'cpu s':>9} {'tokens/s':>9}  {last.name} / this (wall, cpu)"]
    for t in timings:
        lines.append(
            f"{t.name:16} {t.wall:9.2f} {t.processor:9.2f} {t.tokens / t.wall:9.2f}  "
            f"{last.wall / t.wall:.2f} {last.processor / t.processor:.2f}"
        )
    return "\n".join(lines)
