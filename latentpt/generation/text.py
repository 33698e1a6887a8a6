"""Text in, text out: prompts through the tokenizer, tokens through the model, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from latentpt.config import ConfigError
from latentpt.data.errors import DataError
from latentpt.data.tokenizer import Tokenizer, load_tokenizer
from latentpt.generation.decode import generate
from latentpt.generation.sampling import Sampling
from latentpt.thoughts.model import LanguageModel


def find_tokenizer(places: Sequence[str | Path], model: LanguageModel) -> Tokenizer:
    """The tokenizer in the first of the folders or files that has one.

    Raises DataError when none has one, ConfigError when its ids do not fit the model's vocabulary.
    """
    tokenizer, reasons = None, []
    for place in places:
        try:
            tokenizer = load_tokenizer(place)
            break
        except DataError as error:
            reasons.append(str(error))
    if tokenizer is None:
        raise DataError("no tokenizer is at hand; name one with --tokenizer (" + "; ".join(reasons) + ")")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"{tokenizer.path}: has {tokenizer.vocab_size} ids, but the model's vocabulary has "
            f"{model.config.vocab_size}; name the tokenizer that the model was trained with"
        )
    return tokenizer


class Writer:
    """A model that continues texts."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt; an empty one begins, as documents do, after the end-of-document token."""
        ids = self.tokenizer.encode(prompt)
        if ids:
            return ids
        if self.tokenizer.eod_id is None:
            raise DataError(
                "the prompt is empty, and the tokenizer has no end-of-document token to begin with"
            )
        return [self.tokenizer.eod_id]

    def write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """Continuations of the prompts, without them; `on_text(row, piece)` hears of text as it comes."""
        eod = [] if self.tokenizer.eod_id is None else [self.tokenizer.eod_id]
        growing = [_GrowingText(self.tokenizer, eod) for _ in prompts]

        def on_token(row: int, token: int) -> None:
            piece = growing[row].add(token)
            if piece and on_text is not None:
                on_text(row, piece)

        generate(self.model, [self.encode(p) for p in prompts], max_new_tokens, sampling, eod, on_token)
        for row, text in enumerate(growing):
            piece = text.rest()
            if piece and on_text is not None:
                on_text(row, piece)
        return [text.said for text in growing]


class _GrowingText:
    """Text of ids that come one by one; characters that are not yet whole wait for their last bytes."""

    def __init__(self, tokenizer: Tokenizer, silent: Sequence[int]) -> None:
        self.tokenizer, self.silent = tokenizer, silent
        self.ids: list[int] = []
        self.said = ""

    def add(self, token: int) -> str:
        """What the token adds to the text."""
        if token not in self.silent:
            self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._say(text)

    def rest(self) -> str:
        """What is still unsaid at the end."""
        return self._say(self.tokenizer.decode(self.ids))

    def _say(self, text: str) -> str:
        piece, self.said = text[len(self.said) :], text
        return piece
