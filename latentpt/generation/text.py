"""Text in, text out: prompts through the tokenizer, tokens through the model, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from latentpt.config import ConfigError
from latentpt.data.errors import DataError
from latentpt.data.tokenizer import Tokenizer, load_tokenizer
from latentpt.generation.decode import generate
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling
from latentpt.generation.speculate import generate_speculatively
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


class Options(NamedTuple):
    """How texts are continued."""

    max_new_tokens: int = 100
    """Tokens to add to each prompt at most."""
    sampling: Sampling = Sampling()
    """How each token is chosen."""
    stop: tuple[str, ...] = ()
    """Strings that end a text; they are not part of it."""
    prefill: Prefill = Prefill()
    """How prompts are read."""
    draft: int = 0
    """Tokens that are guessed and verified at once, see `speculate`; 0 guesses none."""


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
        return self.continue_ids(
            [self.encode(prompt) for prompt in prompts], Options(max_new_tokens, sampling), on_text
        )

    def continue_ids(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        on_text: Callable[[int, str], None] | None = None,
        streams: Sequence[torch.Generator] | None = None,
    ) -> list[str]:
        """Texts that continue the prompts, up to the end-of-document token, a stop string or the length asked for.

        `streams` replace the rows' random streams. Raises ValueError for options that do not fit the model.
        """
        eod = [] if self.tokenizer.eod_id is None else [self.tokenizer.eod_id]
        growing = [GrowingText(self.tokenizer, eod, options.stop, prompt) for prompt in prompts]

        def on_token(row: int, token: int) -> bool:
            piece = growing[row].add(token)
            if piece and on_text is not None:
                on_text(row, piece)
            return growing[row].ended

        if options.draft:
            generate_speculatively(
                self.model, prompts, options.max_new_tokens, options.sampling, eod, on_token, options.draft,
                options.prefill, streams,
            )  # fmt: skip
        else:
            generate(
                self.model, prompts, options.max_new_tokens, options.sampling, eod, on_token, options.prefill,
                streams,
            )  # fmt: skip
        for row, text in enumerate(growing):
            piece = text.rest()
            if piece and on_text is not None:
                on_text(row, piece)
        return [text.said for text in growing]


CONTEXT_IDS = 8
"""Ids of the prompt that the first new ones are decoded after."""


class GrowingText:
    """Text of ids that come one by one.

    Characters that are not yet whole wait for their last bytes, and what may be the beginning of a stop string waits
    until it is or is not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        silent: Sequence[int] = (),
        stop: Sequence[str] = (),
        after: Sequence[int] = (),
    ) -> None:
        """`silent` ids have no text; at the first of the `stop` strings the text ends.

        `after` are the ids that the text goes on from: a tokenizer that keeps a word's space with the word drops it at
        the beginning of a text.
        """
        self.tokenizer, self.silent, self.stop = tokenizer, silent, stop
        self.ids = [token for token in after if token not in silent][-CONTEXT_IDS:]
        self.text = ""
        """Everything decoded so far."""
        self.said = ""
        """The part of it that was handed out."""
        self.ended = False
        """Whether a stop string was found."""
        # ids before _window are never decoded again, ids before _read are in the text
        self._window, self._read = 0, len(self.ids)

    def add(self, token: int) -> str:
        """What the token adds to the text."""
        if token in self.silent or self.ended:
            return ""
        self.ids.append(token)
        new = self._decode()
        if new.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self._grow(new)

    def rest(self) -> str:
        """What is still unsaid at the end."""
        if self.ended:
            return ""
        return self._grow(self._decode()) + self._say(len(self.text))

    def _decode(self) -> str:
        """Text of the unread ids; those before them in the window give them their context."""
        known = self.tokenizer.decode(self.ids[self._window : self._read])
        return self.tokenizer.decode(self.ids[self._window :])[len(known) :]

    def _grow(self, new: str) -> str:
        searched = len(self.text)
        self.text += new
        self._window, self._read = self._read, len(self.ids)
        for stop in self.stop:
            found = self.text.find(stop, max(0, searched - len(stop) + 1))
            if found >= 0:
                self.text, self.ended = self.text[:found], True
        if self.ended:
            return self._say(len(self.text))
        waiting = max((_overlap(self.text, stop) for stop in self.stop), default=0)
        return self._say(len(self.text) - waiting)

    def _say(self, end: int) -> str:
        piece, self.said = self.text[len(self.said) : end], self.text[:end]
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
