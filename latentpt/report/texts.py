"""What the model of a run writes after beginnings of held-out text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from latentpt.config import ConfigError
from latentpt.data.errors import DataError
from latentpt.data.opening import open_validation
from latentpt.data.tokenizer import Tokenizer
from latentpt.files import write_text
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Options, Writer, find_tokenizer
from latentpt.hub.source import data_folders
from latentpt.run import RunConfig, RunFolder, checkpoints, load_model
from latentpt.thoughts.model import LanguageModel

SAMPLING = Sampling(temperature=0.7, top_k=50)
PROMPT_TOKENS, NEW_TOKENS, PROMPTS = 24, 64, 3


class Written(NamedTuple):
    """One prompt and what came after it."""

    prompt: str
    text: str


def texts_of(folder: RunFolder, config: RunConfig, prompts: Sequence[str] = ()) -> list[Written]:
    """What the latest checkpoint writes, from texts.json where it was asked before; none without a tokenizer.

    `prompts` stand in for the beginnings of held-out samples, evenly spread. Raises CheckpointError without a checkpoint,
    ConfigError for a prompt that does not fit the model.
    """
    of = {
        "checkpoint": checkpoints.identity(checkpoints.find(folder.checkpoints)),
        "prompts": list(prompts),
        "sampling": asdict(SAMPLING),
    }
    kept = read_texts(folder)
    if kept is not None and kept["of"] == of:
        return [Written(**one) for one in kept["texts"]]
    written = written_by(load_model(folder.path)[0], config, prompts, [str(folder.path)])
    if not written:
        return []
    found = {"of": of, "texts": [one._asdict() for one in written]}
    write_text(folder.texts, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return written


def written_by(
    model: LanguageModel, config: RunConfig, prompts: Sequence[str] = (), tokenizers: Sequence[str] = ()
) -> list[Written]:
    """What a model writes after `prompts`, or beginnings of held-out samples; none without a tokenizer.

    That lies in one of the folders `tokenizers` or with the data. Raises ConfigError as `texts_of` does.
    """
    try:
        tokenizer = find_tokenizer([*tokenizers, *data_folders(config.data)], model)
    except DataError:
        return []
    writer = Writer(model, tokenizer)
    limit = model.config.max_positions
    asked = [writer.encode(prompt) for prompt in prompts] or beginnings(
        config, min(PROMPT_TOKENS, limit // 3)
    )
    try:
        texts = writer.continue_ids(asked, Options(min(NEW_TOKENS, limit // 2), SAMPLING))
    except ValueError as error:  # a learned table of positions ends
        raise ConfigError(f"a prompt cannot be continued: {error}") from None
    return [Written(_shown(tokenizer, ids), text) for ids, text in zip(asked, texts, strict=True)]


def read_texts(folder: RunFolder) -> dict[str, Any] | None:
    """What texts.json holds, if it is there."""
    return json.loads(folder.texts.read_text(encoding="utf-8")) if folder.texts.is_file() else None


def beginnings(config: RunConfig, length: int) -> list[list[int]]:
    """First ids of held-out samples."""
    corpus = next(iter(open_validation(config.data).values()))
    count = min(PROMPTS, corpus.num_samples)
    samples = (corpus.sample(index * corpus.num_samples // count) for index in range(count))
    return [sample[: max(length, 1)].tolist() for sample in samples]


def _shown(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode([token for token in ids if token < tokenizer.vocab_size])
