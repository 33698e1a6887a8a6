"""Text in, text out: prompts through the tokenizer, tokens through the model, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


BEGINNINGS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[BOS]")
"""Names under which tokenizers in use keep the token that begins a text, best known first."""


def beginning_token(tokenizer: Tokenizer, asked: str = "") -> int:
    """The id that begins texts: the one `asked` for, by its name or number, else the one that the vocabulary names.

    A vocabulary that names none begins texts after the end-of-document token. Raises DataError where there is no such id.
    """
    if asked:
        named = tokenizer.token_id(asked)
        found = int(asked) if named is None and asked.isdecimal() else named
        if found is None or found >= tokenizer.vocab_size:
            raise DataError(
                f"{tokenizer.path}: has no token {asked!r}; its ids end at {tokenizer.vocab_size - 1}"
            )
        return found
    named_ids = (tokenizer.token_id(name) for name in BEGINNINGS)
    found = next((i for i in named_ids if i is not None), tokenizer.eod_id)
    if found is None:
        raise DataError(
            f"{tokenizer.path}: names no token that begins a text; say which with --bos, by its text or id"
        )
    return found


class Continuation(NamedTuple):
    """What was written after a prompt."""

    text: str
    """Without the prompt and without what ended it."""
    ids: list[int]
    """Its ids, without those that have no text."""


class Writer:
    """A model that continues texts."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, begin: int | None = None) -> None:
        """`begin` is an id that stands before every text, see `beginning_token`; None puts nothing there."""
        self.model, self.tokenizer, self.begin = model, tokenizer, begin
        self._told = False  # of a text beyond max_positions

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt; an empty one begins, as documents do, after the end-of-document token."""
        ids = self.tokenizer.encode(prompt)
        if self.begin is not None:
            return [self.begin, *ids]
        if ids:
            return ids
        if self.tokenizer.eod_id is None:
            raise DataError(
                "the prompt is empty, and the tokenizer has no end-of-document token to begin with"
            )
        return [self.tokenizer.eod_id]

    def check_ids(self, ids: Any, where: str) -> list[int]:
        """A prompt that was given as ids; raises DataError, beginning with `where`, for what is no list of the model's ids."""
        size = self.model.config.vocab_size
        if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < size for i in ids):
            raise DataError(
                f"{where}: ids are one or more whole numbers from 0 to {size - 1}, the model's vocabulary"
            )
        return ids

    def seen(self, ids: list[int]) -> list[int]:
        """The ids that a model may have read: a learned table of positions ends, and the last token is never read."""
        return ids[: self.model.config.max_positions] if self._ends else ids

    @property
    def _ends(self) -> bool:
        return self.model.config.positions == "learned"

    def _mind(self, positions: int) -> None:
        """Warn, once, of a text that is longer than what rotary positions were trained for."""
        limit = self.model.config.max_positions
        if positions > limit and not self._ends and not self._told:
            self._told = True
            warnings.warn(
                f"the text goes beyond model.max_positions = {limit}, the longest that the model was made for; what it "
                "writes there may be worse",
                stacklevel=3,
            )

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
        """Texts that continue the prompts, see `continuations`."""
        return [found.text for found in self.continuations(prompts, options, on_text, streams)]

    def continuations(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        on_text: Callable[[int, str], None] | None = None,
        streams: Sequence[torch.Generator] | None = None,
    ) -> list[Continuation]:
        """What continues the prompts, up to the end-of-document token, a stop string or the length asked for.

        `streams` replace the rows' random streams. Warns once where rotary positions go beyond max_positions. Raises
        ValueError for options that do not fit the model.
        """
        eod = [] if self.tokenizer.eod_id is None else [self.tokenizer.eod_id]
        growing = [GrowingText(self.tokenizer, eod, options.stop, prompt) for prompt in prompts]
        new: list[list[int]] = [[] for _ in prompts]
        self._mind(max(map(len, prompts), default=0))

        def on_token(row: int, token: int) -> bool:
            piece = growing[row].add(token)
            if token not in eod:
                new[row].append(token)
                self._mind(len(prompts[row]) + len(new[row]) - 1)  # the last one is not read
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
        return [Continuation(text.said, ids) for text, ids in zip(growing, new, strict=True)]


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
