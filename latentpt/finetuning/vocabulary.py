"""Markers in a vocabulary: the tokenizer learns them, the tables grow rows for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentpt.config import ConfigError
from latentpt.data.tokenizer import Tokenizer
from latentpt.modeling.config import Recompute
from latentpt.thoughts.model import LanguageModel


def marked(source: Tokenizer, markers: Sequence[str]) -> bytes:
    """The tokenizer with the markers added, as a tokenizer.json."""
    import tokenizers

    from latentpt.hub.pieces import to_tokenizers

    if source.path.suffix == ".json":
        inner = tokenizers.Tokenizer.from_file(str(source.path))
    else:
        inner = to_tokenizers(source)
    inner.add_special_tokens([tokenizers.AddedToken(marker, special=True) for marker in markers])
    return inner.to_str(pretty=True).encode()


@torch.no_grad()
def grown(
    model: LanguageModel,
    vocab_size: int,
    new_ids: Sequence[int],
    copied: int | None,
    attention: str = "sdpa",
    checkpoint_activations: Recompute = "none",
) -> LanguageModel:
    """The model with a vocabulary of at least `vocab_size` rows.

    Rows of `new_ids` start as row `copied`, or as the mean of the old rows, in every table of the vocabulary.
    """
    old = model.config.vocab_size
    size = max(old, vocab_size)
    thoughts = model.thoughts
    config = model.config.model_copy(update={"vocab_size": size})
    larger = LanguageModel(config, thoughts, attention, checkpoint_activations)
    larger = larger.to(next(model.parameters()).dtype)
    before, tables = dict(model.named_parameters()), vocabulary_tables(model)
    for name, parameter in larger.named_parameters():
        value = before[name]
        if name not in tables:
            parameter.copy_(value)
            continue
        parameter[:old] = value
        parameter[old:] = value.mean(dim=0)
        if new_ids:
            parameter[list(new_ids)] = value.mean(dim=0) if copied is None else value[copied]
    return larger


def vocabulary_tables(model: LanguageModel) -> set[str]:
    """Names of the parameters that have a row for every token."""
    config = model.config.model_copy(update={"vocab_size": model.config.vocab_size + 1})
    with torch.device("meta"):
        wider = dict(LanguageModel(config, model.thoughts).named_parameters())
    return {name for name, p in model.named_parameters() if p.shape != wider[name].shape}


def end_token(tokenizer: Tokenizer) -> int:
    """The id that ends an answer; raises ConfigError if the tokenizer names none."""
    if tokenizer.eod_id is None:
        raise ConfigError(f"{tokenizer.path}: names no end-of-document token, which has to end every answer")
    return tokenizer.eod_id
