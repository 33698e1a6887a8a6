"""From a configuration to what a training works on: weights, tokenizer, usable questions, the plan of stages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentpt.config import ConfigError
from latentpt.data.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from latentpt.finetuning.coconut import Markers, coconut_row
from latentpt.finetuning.config import FinetuneConfig
from latentpt.finetuning.examples import read_examples
from latentpt.finetuning.lt_tuning import plain_row
from latentpt.finetuning.reasoner import RECIPE, Reasoner, Recipe, load_reasoner
from latentpt.finetuning.rows import WORDINGS, Pieces, Wording, encode_examples
from latentpt.finetuning.stages import Stage, planned_stages
from latentpt.finetuning.vocabulary import end_token, grown, marked
from latentpt.thoughts.model import LanguageModel

BEST = "best"
"""Folder of a run with the best checkpoint, ready for use."""


@dataclass
class Prepared:
    """What a training works on."""

    reasoner: Reasoner
    recipe: Recipe
    tokenizer: Tokenizer
    train: list[Pieces]
    validation: list[Pieces]
    stages: list[Stage]
    notes: list[str]
    """What was left out."""
    tokenizer_json: bytes
    """Content of the run's tokenizer.json, not written yet."""


def prepare(config: FinetuneConfig) -> Prepared:
    """Everything, nothing written; raises ConfigError or DataError for what cannot work."""
    language, tokenizer, adapter = start(config)
    names = marker_names(config)
    fresh_names = [name for name in names if tokenizer.token_id(name) is None]
    content = marked(tokenizer, names)
    with_markers = HuggingFaceTokenizer(config.folder.path / "tokenizer.json", content)
    ids = [_id(with_markers, name) for name in names]
    copied = _id(tokenizer, config.markers.copy_row) if config.markers.copy_row else None
    settings = config.training
    language = grown(
        language, with_markers.vocab_size, [_id(with_markers, name) for name in fresh_names], copied,
        settings.attention, settings.checkpoint_activations,
    )  # fmt: skip
    stages = planned_stages(config)
    recipe = first_recipe(config, language, stages, ids, end_token(with_markers))
    reasoner = Reasoner(language, recipe.adapter, config.seed)
    if adapter is not None and reasoner.adapter is not None:
        reasoner.adapter.load_state_dict(adapter.state_dict())
    if recipe.kind is not None:
        reasoner.fill(recipe).block(language.config)  # refuses a layer that is not there
    train, validation, notes = _questions(config, with_markers, stages, recipe, names)
    return Prepared(reasoner, recipe, with_markers, train, validation, stages, notes, content)


def start(config: FinetuneConfig) -> tuple[LanguageModel, Tokenizer, Reasoner | None]:
    """First weights and their tokenizer, and the adapter's owner where there is one."""
    given = config.start
    if given.fresh is not None:
        if not given.tokenizer:
            raise ConfigError("start.fresh needs start.tokenizer (a tokenizer.json, .model or folder)")
        tokenizer = load_tokenizer(given.tokenizer)
        model = LanguageModel(
            given.fresh.model_copy(update={"vocab_size": tokenizer.vocab_size}), given.thoughts
        )
        model.initialize(config.seed)
        return model, tokenizer, None
    path = Path(given.run or given.model)
    for folder in (path / BEST, path) if given.run else (path,):
        if (folder / RECIPE).is_file():
            reasoner, _, tokenizer = load_reasoner(folder)
            return reasoner.language, tokenizer, None if reasoner.adapter is None else reasoner
    from latentpt.hub.source import open_source

    source = open_source(
        argparse.Namespace(
            run=given.run or None, model=given.model or None, step=None, tokenizer=given.tokenizer or None
        )
    )
    return source.model.float(), source.tokenizer(), None


def marker_names(config: FinetuneConfig) -> list[str]:
    """The markers that a mode adds to the vocabulary."""
    markers = config.markers
    if config.mode == "lt_tuning":
        return [markers.latent]
    if config.mode in ("cot", "no_cot", "no_thoughts"):
        return []
    return [markers.start, markers.end, markers.latent]


def first_recipe(
    config: FinetuneConfig, language: LanguageModel, stages: Sequence[Stage], ids: Sequence[int], end: int
) -> Recipe:
    """The recipe of a run before its first stage."""
    fill, lt = config.fill, config.lt
    paper = config.mode == "lt_tuning" and lt.preset == "paper"
    released = config.mode == "lt_tuning" and lt.preset == "released"
    markers = None
    if config.mode == "lt_tuning":
        markers = (ids[0], ids[0], ids[0])
    elif ids:
        markers = (ids[0], ids[1], ids[2])
    return Recipe(
        mode=config.mode,
        stage=stages[0].number,
        latents=0,
        markers=markers,
        end=end,
        kind=next((stage.fill for stage in stages if stage.fill), None),
        layer=fill.layer if fill.layer is not None else -2 if paper else -1,
        alpha=fill.alpha,
        top_p=fill.top_p if fill.top_p is not None else 0.9 if released else 0.8,
        temperature=fill.temperature,
        inclusive=fill.inclusive if fill.inclusive is not None else not released,
        adapter=fill.adapter,
        switch=lt.switch if config.mode == "lt_tuning" else "never",
        switch_tau=lt.switch_tau,
        switch_most=lt.switch_most,
        extraction=config.extraction,
        model=language.config,
        thoughts=language.thoughts,
    )


def _questions(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    stages: Sequence[Stage],
    recipe: Recipe,
    names: Sequence[str],
) -> tuple[list[Pieces], list[Pieces], list[str]]:
    found, notes = [], []
    for name, path, limit in (
        ("data.train", config.data.train, config.data.rows),
        ("data.validation", config.data.validation, config.answers.rows),
    ):
        rows, told = usable_questions(config, path, limit, name, tokenizer, stages, recipe, names)
        found.append(rows)
        notes += told
    return found[0], found[1], notes


def usable_questions(
    config: FinetuneConfig,
    path: str,
    limit: int | None,
    name: str,
    tokenizer: Tokenizer,
    stages: Sequence[Stage],
    recipe: Recipe,
    names: Sequence[str],
) -> tuple[list[Pieces], list[str]]:
    """Usable questions of a file, and what to tell about the others."""
    examples = read_examples(path, limit)
    wording: Wording = WORDINGS[config.lt.resolved_text() if config.mode == "lt_tuning" else "plain"]

    def longest(pieces: Pieces) -> int:
        if config.mode == "lt_tuning":
            return len(plain_row(pieces).ids)
        markers = Markers(*(recipe.markers or (0, 0, 0)))
        return max(
            len(coconut_row(pieces, config.mode, config.coconut, stage.number, markers).ids)
            for stage in stages
        )

    rows, left_out = encode_examples(
        examples, tokenizer, recipe.end, wording, names, longest, config.data.max_length,
        config.mode != "no_cot", name,
    )  # fmt: skip
    return rows, left_out.lines(name, len(examples))


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_id(token)
    if found is None:
        raise ConfigError(f"markers.copy_row = {token!r} is no token of {tokenizer.path}")
    return found
