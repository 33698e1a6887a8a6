"""Tokenizers behind one small interface: Hugging Face tokenizer.json and sentencepiece .model files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from latentpt.data.errors import DataError

# Names under which tokenizers in use keep the token that ends a document, best known first.
EOD_NAMES = ("<|endoftext|>", "</s>", "<eod>", "<|end_of_text|>", "<eos>", "[EOS]")


class Tokenizer(Protocol):
    """Text to ids and back. Special tokens written out in a text are read as the plain characters they are."""

    path: Path
    sha256: str
    vocab_size: int
    """Largest id + 1."""
    eod_id: int | None
    """Id that ends a document; None when the vocabulary names none."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added before or after."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens written out."""
        ...

    def token_id(self, token: str) -> int | None:
        """Id of the vocabulary's entry `token`, or None."""
        ...


class HuggingFaceTokenizer:
    """A tokenizer.json of the tokenizers library."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Read `content`, the bytes of `path`."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path}: is not a Hugging Face tokenizer.json ({error})") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.path, self.sha256 = path, hashlib.sha256(content).hexdigest()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        ids = map(self._tokenizer.token_to_id, EOD_NAMES)
        self.eod_id: int | None = next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added before or after."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens written out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """Id of the vocabulary's entry `token`, or None."""
        return self._tokenizer.token_to_id(token)


class SentencePieceTokenizer:
    """A sentencepiece .model file."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Read `content`, the bytes of `path`."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise DataError(f"{path}: is not a sentencepiece model ({error})") from None
        self.path, self.sha256 = path, hashlib.sha256(content).hexdigest()
        self.vocab_size = self._processor.vocab_size()
        eos = self._processor.eos_id()
        self.eod_id: int | None = eos if eos >= 0 else None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added before or after."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return self._processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control tokens have no text."""
        return self._processor.decode(list(map(int, ids)))

    def token_id(self, token: str) -> int | None:
        """Id of the vocabulary's entry `token`, or None."""
        found = self._processor.piece_to_id(token)
        return None if found == self._processor.unk_id() else found


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer.json, a sentencepiece .model, or the one of a shard folder.

    Raises DataError naming the file when there is none or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise DataError(f"{path}: holds neither tokenizer.json nor tokenizer.model")
        path = found[0]
    if not path.is_file():
        raise DataError(f"{path}: there is no such tokenizer file")
    content = path.read_bytes()
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path, content)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path, content)
    raise DataError(f"{path}: a tokenizer is a .json (Hugging Face) or a .model (sentencepiece) file")
