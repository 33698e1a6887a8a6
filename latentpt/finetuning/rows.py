"""Examples as ids, and the count of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from latentpt.data.errors import DataError
from latentpt.data.tokenizer import Tokenizer
from latentpt.finetuning.examples import Example

IGNORE = -100


class Pieces(NamedTuple):
    """An example as ids, piece by piece."""

    question: list[int]
    steps: list[list[int]]
    answer: list[int]
    """The end token included."""
    gold: str
    """The answer's text."""


class Row(NamedTuple):
    """Ids of one training row and their labels, unshifted, -100 where nothing is learnt."""

    ids: list[int]
    labels: list[int]


Wording = Callable[[Example], tuple[str, list[str], str]]
"""What is written for an example: question, steps, answer."""


def coconut_wording(example: Example) -> tuple[str, list[str], str]:
    """Lines, and the answer after ###."""
    return f"{example.question}\n", [f"{step}\n" for step in example.steps], f"### {example.answer}"


def paper_wording(example: Example) -> tuple[str, list[str], str]:
    """The prompt of LT-Tuning's paper."""
    question, steps, answer = coconut_wording(example)
    return question, steps, f"The final answer is:\n{answer}"


def released_wording(example: Example) -> tuple[str, list[str], str]:
    """The assistant's text in LT-Tuning's released code."""
    question, steps, answer = paper_wording(example)
    return question, [f"## Step {i}: {step}" for i, step in enumerate(steps, start=1)], answer


WORDINGS: dict[str, Wording] = {
    "plain": coconut_wording,
    "paper": paper_wording,
    "released": released_wording,
}


@dataclass
class Unusable:
    """Rows left out, by reason, with the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: Example) -> None:
        """One more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, example.question)

    def lines(self, name: str, total: int) -> list[str]:
        """What to tell about a file of `total` examples."""
        return [
            f"{name}: {count:,} of {total:,} rows left out: {reason}; the first: {_shortened(self.first[reason])}"
            for reason, count in self.counts.items()
        ]


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    end: int,
    wording: Wording,
    markers: Sequence[str],
    longest: Callable[[Pieces], int],
    max_length: int,
    needs_steps: bool,
    name: str,
) -> tuple[list[Pieces], Unusable]:
    """The usable examples as pieces; `longest` tells a row's greatest length at any stage.

    Raises DataError when none is usable.
    """
    found, left_out = [], Unusable()
    texts = [wording(example) for example in examples]
    pieces = [[question, *steps, answer] for question, steps, answer in texts]
    parts = iter(tokenizer.encode_batch(list(chain.from_iterable(pieces))))
    wholes = tokenizer.encode_batch(["".join(some) for some in pieces])
    for example, some, whole in zip(examples, pieces, wholes, strict=True):
        ids = [next(parts) for _ in some]
        row = Pieces(ids[0], ids[1:-1], [*ids[-1], end], example.answer)
        marker = next((marker for marker in markers if marker in "".join(some)), None)
        if needs_steps and not example.steps:
            left_out.add("no steps", example)
        elif marker is not None:
            left_out.add(f"the marker {marker} is part of the text", example)
        elif list(chain.from_iterable(ids)) != whole:
            left_out.add("its pieces do not concatenate to the whole under this tokenizer", example)
        elif longest(row) > max_length:
            left_out.add(f"longer than data.max_length = {max_length} tokens", example)
        else:
            found.append(row)
    if not found:
        raise DataError("; ".join(left_out.lines(name, len(examples))))
    return found, left_out


def _shortened(text: str, length: int = 80) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")
