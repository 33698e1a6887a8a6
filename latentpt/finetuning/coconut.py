"""Coconut's rows (arXiv 2412.06769): the first steps of the chain give way to latents, stage by stage.

    question  <start>  latent x n  <end>  steps[removed:]  ### answer  end-of-text

The question, the markers and the latents are not learnt.
"""

from __future__ import annotations

import random
from itertools import chain
from typing import NamedTuple

from latentpt.finetuning.config import CoconutConfig, Mode
from latentpt.finetuning.rows import IGNORE, Pieces, Row


class Markers(NamedTuple):
    """Ids of the added tokens."""

    start: int
    end: int
    latent: int


def removed_and_latents(rules: CoconutConfig, stage: int, steps: int) -> tuple[int, int]:
    """How many steps a row of `steps` steps loses at a stage and how many latents it gets: in training and evaluation
    alike.

    The released code ignores pad_latent_to_max = false in training up to the last latent stage, though not in
    evaluation; here both follow the evaluation's rule.
    """
    most = rules.max_latent_stage if rules.pad_latent_to_max else min(rules.max_latent_stage, steps)
    removed = steps if stage > rules.max_latent_stage else min(stage, steps)
    return removed, min(stage, most) * rules.c_thought


def drawn_stage(rules: CoconutConfig, stage: int, steps: int, seed: int, epoch: int, row: int) -> int:
    """The stage of a row in an epoch: that of the epoch, or with probability uniform_prob any."""
    if rules.uniform_prob == 0:
        return stage
    rng = random.Random(repr((seed, "stage", epoch, row)))
    return rng.randrange(steps + 1) if rng.random() < rules.uniform_prob else stage


def thought(markers: Markers, latents: int) -> list[int]:
    """The block of latents between its markers."""
    return [markers.start, *[markers.latent] * latents, markers.end]


def coconut_prompt(
    pieces: Pieces, mode: Mode, rules: CoconutConfig, stage: int, markers: Markers
) -> list[int]:
    """What the model reads before it answers; the chain of thought is written by the model at stage 0."""
    if mode in ("cot", "no_cot", "no_thoughts"):
        return pieces.question
    return [*pieces.question, *thought(markers, removed_and_latents(rules, stage, len(pieces.steps))[1])]


def coconut_row(pieces: Pieces, mode: Mode, rules: CoconutConfig, stage: int, markers: Markers) -> Row:
    """The training row of an example at a stage, for every mode but lt_tuning."""
    removed, _ = removed_and_latents(rules, stage, len(pieces.steps))
    removed = {"cot": 0, "no_cot": len(pieces.steps)}.get(mode, removed)
    given = coconut_prompt(pieces, mode, rules, stage, markers)
    learnt = [*chain.from_iterable(pieces.steps[removed:]), *pieces.answer]
    return Row([*given, *learnt], [IGNORE] * len(given) + learnt)
