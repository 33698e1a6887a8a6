"""Time decoding and prefill by every way there is, beside the published implementation where a user has it.

The weights are rounded to bfloat16 and computed with in float32 by both sides, so that a matrix stored in bfloat16
holds the same numbers; all ways must write the same tokens, or nothing is reported. Wall time is what a user waits for;
processor time, of all threads together, says more on a machine that others use too.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.benchmark.reference import load_reference
from latentpt.config import ConfigError
from latentpt.generation.decode import Session, generate
from latentpt.generation.narrow import narrow_matrices
from latentpt.generation.prefill import Prefill
from latentpt.generation.speculate import generate_speculatively
from latentpt.modeling.config import ModelConfig
from latentpt.seeding import stream
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel

Ids = list[list[int]]
PREFILL = Prefill("gauss_seidel")
"""How decoding's prompt is read where it cannot be read exactly in parallel."""


class Timing(NamedTuple):
    """How long one way of doing something took."""

    name: str
    wall: float
    """Seconds."""
    processor: float
    """Seconds of all threads together."""
    tokens: int
    """Tokens read or written in that time."""


class Ahead:
    """Decoding with guesses; remembers how many were right."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.share = model, 0.0

    def __call__(self, prompts: Ids, new_tokens: int) -> Ids:
        """The new ids of every prompt."""
        found = generate_speculatively(self.model, prompts, new_tokens, draft=1, prefill=PREFILL)
        self.share = found.kept / max(1, found.drafted)
        return found.found


def decoders(model: LanguageModel) -> dict[str, Callable[[Ids, int], Ids]]:
    """Our ways to decode the same tokens, by name: (prompts, new tokens) -> new ids."""
    narrow = copy.deepcopy(model)
    narrow_matrices(narrow, torch.bfloat16)

    def plain(weights: LanguageModel) -> Callable[[Ids, int], Ids]:
        return lambda prompts, new_tokens: generate(weights, prompts, new_tokens, prefill=PREFILL)

    return {
        "ours": plain(model),
        "ours, guessing": Ahead(model),
        "ours, bf16 matrices": plain(narrow),
        "ours, bf16 matrices, guessing": Ahead(narrow),
    }


def time_decoding(
    ways: Mapping[str, Callable[[Ids, int], Ids]], prompt: Tensor, new_tokens: int, published: Any = None
) -> list[Timing]:
    """Greedy decoding of `new_tokens` after prompt int64 [B, L] by each of our ways and the published `generate`.

    Raises ConfigError when not all write the same tokens.
    """
    timings, found = [], {}
    ways = dict(ways)
    if published is not None:
        ways["published"] = lambda prompts, number: _published(published, prompts, number)
    for name, decode in ways.items():
        decode(prompt.tolist(), 2)  # compiles what is compiled

        def work(decode: Callable[[Ids, int], Ids] = decode, name: str = name) -> None:
            found[name] = torch.tensor(decode(prompt.tolist(), new_tokens))

        timings.append(_timed(name, work, len(prompt) * new_tokens))
    first, ids = next(iter(found.items()))
    for name, others in found.items():
        if not torch.equal(ids, others):
            same, count = int((ids == others).sum()), ids.numel()
            raise ConfigError(
                f"only {same} of {count} tokens of '{name}' are those of '{first}'; no figure is given"
            )
    return timings


def _published(model: Any, prompts: Ids, new_tokens: int) -> Ids:
    ids = torch.tensor(prompts, device=next(model.parameters()).device)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        do_sample=False, use_cache=True, pad_token_id=0,
    )  # fmt: skip
    written: Ids = out[:, ids.shape[1] :].tolist()
    return written


@torch.no_grad()
def time_prefill(
    models: Mapping[str, LanguageModel],
    prompt: Tensor,
    prefills: Mapping[str, Prefill],
    published: Any = None,
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
        timings.append(_timed("published", lambda: _published(published, prompt.tolist(), 1), prompt.numel()))
    return timings


def _timed(name: str, work: Callable[[], object], tokens: int) -> Timing:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Timing(name, time.perf_counter() - wall, time.process_time() - processor, tokens)


def timing_table(title: str, timings: list[Timing]) -> str:
    """One line for each: seconds, tokens a second, and the last one's time in multiples of it."""
    last = timings[-1]
    heading = f"{last.name} / this (wall, cpu)"
    lines = [f"{title:<32} {'wall s':>9} {'cpu s':>9} {'tokens/s':>9}  {heading}"]
    for t in timings:
        lines.append(
            f"{t.name:<32} {t.wall:9.2f} {t.processor:9.2f} {t.tokens / t.wall:9.2f}  "
            f"{last.wall / t.wall:.2f} {last.processor / t.processor:.2f}"
        )
    return "\n".join(lines)


def run(
    model_config: ModelConfig,
    thoughts: ThoughtsConfig,
    rows: int,
    prompt_tokens: int,
    new_tokens: int,
    device: str,
    reference: Path | None = None,
) -> str:
    """Time decoding and prefill of a model of random weights; with `reference` beside that checkout. Returns two tables.

    Raises ConfigError where the checkout cannot be used or the ways disagree.
    """
    model = _rounded(LanguageModel(model_config, thoughts), device)
    published = None
    if reference is not None:
        published = load_reference(reference, model, thoughts.refinement_range[1]).to(device).eval()
    prompt = torch.randint(model_config.vocab_size, (rows, prompt_tokens), generator=stream(0, "prompt"))
    ways = decoders(model)
    decoding = time_decoding(ways, prompt.to(device), new_tokens, published)
    guessed = [
        f"{name}: {way.share:.0%} of the guesses were right"
        for name, way in ways.items()
        if isinstance(way, Ahead)
    ]
    ways.clear()
    staged = thoughts.model_copy(update={"visibility": "stage_causal"})
    models = {
        "stage_causal, exact": _rounded(LanguageModel(model_config, staged), device),
        "gauss_seidel, 2 sweeps": model,
    }
    prefills = {
        "stage_causal, exact": Prefill(),
        "gauss_seidel, 2 sweeps": Prefill("gauss_seidel", max_sweeps=2),
    }
    prefill = time_prefill(models, prompt.to(device), prefills, published)
    return "\n".join(
        [
            timing_table(f"decoding {rows} x {new_tokens} tokens", decoding),
            *guessed,
            "",
            timing_table(f"prefill of {rows} x {prompt_tokens} tokens", prefill),
        ]
    )


def _rounded(model: LanguageModel, device: str) -> LanguageModel:
    """Weights from seed 0, such as bfloat16 can hold, in float32."""
    model.initialize(0)
    return model.to(torch.bfloat16).to(torch.float32).to(device).eval()
