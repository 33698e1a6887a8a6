"""LT-Tuning's rows (arXiv 2602.10229): latents go into the chain of thought where the model is not sure.

The chain stays; the latents in it are supervised like words, and so the model learns when to think one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain

from latentpt.finetuning.config import LtStage
from latentpt.finetuning.rows import IGNORE, Pieces, Row


def plain_row(pieces: Pieces) -> Row:
    """Question, chain and answer: what confidences are measured on and latents inserted into."""
    response = [*chain.from_iterable(pieces.steps), *pieces.answer]
    return Row([*pieces.question, *response], [IGNORE] * len(pieces.question) + response)


def insertions(
    confidences: Sequence[float], stage: LtStage, seed: int, row: int, number: int, room: int
) -> list[int]:
    """How many latents go before each token of the response, given the probabilities that the weights of the stage
    before gave to the gold tokens; drawn from (seed, row, stage).

    Candidates have a probability below tau; `sites` of them are chosen, each gets a latent with probability
    `insertion`, and a second one with probability `second`, or else one to `most`; all of them while there is `room`.
    """
    rng = random.Random(repr((seed, "insertion", row, number)))
    candidates = [place for place, p in enumerate(confidences) if p < stage.tau]
    if stage.sites is None:
        chosen = candidates
    else:
        wanted = int(len(candidates) * stage.sites) if 0 < stage.sites < 1 else int(stage.sites)
        chosen = sorted(rng.sample(candidates, min(wanted, len(candidates))))
    counts = [0] * len(confidences)
    for place in chosen:
        if rng.random() >= stage.insertion:
            continue
        if stage.second:
            counts[place] = 1 + (rng.random() < stage.second)
        else:
            counts[place] = rng.randint(1, stage.most)
        counts[place] = min(counts[place], room)
        room -= counts[place]
    return counts


def latent_row(pieces: Pieces, counts: Sequence[int], latent: int) -> Row:
    """The row with counts[i] latents before token i of the response."""
    response: list[int] = []
    for token, count in zip(plain_row(pieces).ids[len(pieces.question) :], counts, strict=True):
        response += [latent] * count + [token]
    return Row([*pieces.question, *response], [IGNORE] * len(pieces.question) + response)
