"""Data sets made here: ProsQA in words or symbols, with or without its depth shortcut, and small sums for tests.

Row i of a data set is a function of (seed, part, i) alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from latentpt.config import Count, Section
from latentpt.finetuning.examples import Example, write_examples
from latentpt.finetuning.graphs import (
    CONCEPTS,
    NAMES,
    NODES,
    Graph,
    draw_graph,
    farther_is_right,
    in_sentences,
    in_symbols,
)

PARTS = ("train", "validation", "test")


class BuildConfig(Section):
    """A data set to make."""

    task: Literal["prosqa", "symbolic_prosqa", "arithmetic"]
    """prosqa: in sentences; symbolic_prosqa: the same graphs in numbers; arithmetic: sums step by step."""
    output: str
    """Folder to write train.jsonl, validation.jsonl, test.jsonl and tokenizer.json into."""
    rows: tuple[Count, Count, Count] = (17_886, 300, 500)
    """Rows of training, validation and test."""
    seed: int = 0
    """Decides every row."""
    matched: bool = True
    """ProsQA: both options equally far from the entities (no shortcut); false makes rows like the released ones."""
    nodes: Count = NODES
    """ProsQA: nodes a graph begins with."""
    hops: tuple[Count, Count] = (3, 6)
    """ProsQA: least and most steps from the asked entity to the answer; arithmetic: least and most operations."""
    symbols: Count = 30
    """symbolic_prosqa: numbers that name nodes, at least `nodes`; arithmetic: results are taken modulo this."""

    @model_validator(mode="after")
    def _check(self) -> BuildConfig:
        if self.hops[0] > self.hops[1]:
            raise ValueError(f"hops = {list(self.hops)} must be the least and the most, in this order")
        room = {"prosqa": len(CONCEPTS), "symbolic_prosqa": self.symbols, "arithmetic": self.nodes}[self.task]
        if self.nodes > room:
            raise ValueError(
                f"nodes = {self.nodes} are more than there are names for; the nearest value that works is {room}"
            )
        return self


def build_examples(config: BuildConfig, part: str, count: int) -> list[Example]:
    """The rows of a part; equal questions within it may occur, rows of different parts are drawn independently."""
    return [build_example(config, row_rng(config, part, i)) for i in range(count)]


def row_rng(config: BuildConfig, part: str, row: int) -> random.Random:
    """What a row is drawn with."""
    return random.Random(repr((config.seed, part, row)))


def build_graph(config: BuildConfig, rng: random.Random) -> Graph:
    """The graph of a row of ProsQA."""
    return draw_graph(rng, config.nodes, config.matched, config.hops)


def build_example(config: BuildConfig, rng: random.Random) -> Example:
    """One row."""
    if config.task == "arithmetic":
        return arithmetic(rng, config.hops, config.symbols)
    graph = build_graph(config, rng)
    if config.task == "prosqa":
        return in_sentences(rng, graph)
    return in_symbols(rng, graph, config.symbols)


def arithmetic(rng: random.Random, operations: tuple[int, int], modulus: int) -> Example:
    """`3 + 4 - 2` with the steps `3 + 4 = 7`, `7 - 2 = 5`, all modulo `modulus`."""
    value = rng.randrange(modulus)
    question, steps = str(value), []
    for _ in range(rng.randint(*operations)):
        sign, number = rng.choice("+-"), rng.randrange(modulus)
        result = (value + number if sign == "+" else value - number) % modulus
        question += f" {sign} {number}"
        steps.append(f"{value} {sign} {number} = {result}")
        value = result
    return Example(question, steps, str(value))


def build(config: BuildConfig) -> list[Path]:
    """Write the three parts and a tokenizer whose tokens are the task's words; returns the files of the parts."""
    folder = Path(config.output)
    paths = [folder / f"{part}.jsonl" for part in PARTS]
    for part, path, count in zip(PARTS, paths, config.rows, strict=True):
        write_examples(path, build_examples(config, part, count))
    if config.task == "prosqa":
        write_sentence_tokenizer(folder / "tokenizer.json")
    else:
        write_symbol_tokenizer(folder / "tokenizer.json", config.symbols)
    return paths


def shortcut(config: BuildConfig) -> float | None:
    """Share of the test rows that depth alone answers, see `graphs.farther_is_right`; None where there are no graphs."""
    if config.task == "arithmetic":
        return None
    count = config.rows[PARTS.index("test")]
    graphs = (build_graph(config, row_rng(config, "test", row)) for row in range(count))
    return sum(map(farther_is_right, graphs)) / count


def write_symbol_tokenizer(path: Path, symbols: int) -> None:
    """A tokenizer.json whose tokens are numbers below `symbols` and the signs of the symbolic tasks, one word each."""
    words = ["\n", "###", "|", "?", "@", "+", "-", "=", *map(str, range(symbols))]
    _write_tokenizer(path, words, [(r"\n", "isolated"), (r" +", "removed")], decoder=None)


def write_sentence_tokenizer(path: Path) -> None:
    """A tokenizer.json for ProsQA's sentences, two tokens each: "Every lempus" and " is a yumpus.".

    The space between sentences belongs to neither, so that a subject is one token wherever it stands.
    """
    words = ["\n", "###", "Is", "?", *NAMES, *(f"Every {concept}" for concept in CONCEPTS)]
    words += [text.format(concept) for text in (" is a {}.", " a {}", " or {}") for concept in CONCEPTS]
    pattern = r"Every [a-z]+| is a [a-z]+\.| (?:a|or) [a-z]+|[A-Z][a-z]+|\?|\n|###"
    splits = [(r" (?=[A-Z])", "removed"), (pattern, "isolated")]
    decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("###", "### ")])
    _write_tokenizer(path, words, splits, decoder)


def _write_tokenizer(
    path: Path, words: Sequence[str], splits: Sequence[tuple[str, str]], decoder: Any
) -> None:
    """A vocabulary of whole words, found by splitting at patterns."""
    ids = {word: i for i, word in enumerate(["<|endoftext|>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behaviour) for pattern, behaviour in splits]
    )
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
