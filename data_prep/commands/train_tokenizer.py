"""train_tokenizer: a byte-level BPE (tokenizer.json) or a sentencepiece model (.model) from any of the inputs."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.commands.arguments import add_read_arguments, amount, read_options
from data_prep.reading.documents import read_documents
from data_prep.reading.inputs import find_inputs
from data_prep.reading.records import ReadOptions
from latentpt.data.errors import DataError

EOD = "<|endoftext|>"
_SMALLEST = 257  # every byte and the end-of-document token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_read_arguments(parser)
    parser.add_argument(
        "--output", required=True, help="file to write: .json for byte-level BPE, .model for sentencepiece"
    )
    parser.add_argument(
        "--vocab-size", type=amount, default=4096, help="entries of the vocabulary (default: 4096)"
    )
    parser.add_argument(
        "--model-type",
        choices=["bpe", "unigram"],
        default="bpe",
        help="algorithm of sentencepiece (default: bpe)",
    )
    parser.add_argument(
        "--sample",
        type=amount,
        help="bytes of text to train on, taken evenly from the inputs (default: all of it)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    size = train(
        find_inputs(arguments.input),
        read_options(arguments),
        Path(arguments.output),
        arguments.vocab_size,
        arguments.model_type,
        arguments.sample,
    )
    print(f"{arguments.output}: {size} entries")


def train(
    files: Sequence[str],
    options: ReadOptions,
    output: Path,
    vocab_size: int,
    model_type: str,
    sample: int | None,
) -> int:
    """Train a tokenizer on the documents of `files` and write it to `output`; return the size of its vocabulary.

    Raises DataError when there is no text, when the vocabulary is too small for every byte or, for sentencepiece,
    too large for the text.
    """
    if output.suffix not in (".json", ".model"):
        raise DataError(
            f"{output}: name it .json for a byte-level BPE or .model for a sentencepiece tokenizer"
        )
    if vocab_size < _SMALLEST:
        raise DataError(f"--vocab-size {vocab_size} has no room for every byte; the smallest is {_SMALLEST}")
    texts = _sampled(files, options, sample)
    content, size = (
        _byte_level_bpe(texts, vocab_size)
        if output.suffix == ".json"
        else _sentencepiece(texts, vocab_size, model_type)
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    side = output.with_name(output.name + ".tmp")
    side.write_bytes(content)
    side.replace(output)
    return size


def _sampled(files: Sequence[str], options: ReadOptions, sample: int | None) -> Iterator[str]:
    """Texts of the documents, or of an even selection of about `sample` bytes of them."""
    total = 0
    wanted = 1.0
    if sample is not None:
        everything = sum(document.text_bytes for document in read_documents(files, options))
        wanted = min(1.0, sample / max(everything, 1))
    for document in read_documents(files, options):
        if int.from_bytes(document.digest[8:16], "big") < wanted * 2**64:
            yield document.text
            total += 1
    if not total:
        raise DataError(f"{files[0]}: the input holds no document to train on")


def _byte_level_bpe(texts: Iterator[str], vocab_size: int) -> tuple[bytes, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode(), tokenizer.get_vocab_size()


def _sentencepiece(texts: Iterator[str], vocab_size: int, model_type: str) -> tuple[bytes, int]:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            # Text must come back as it was: no normalisation, no space put before it, unseen characters as bytes.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9995,
            split_digits=True,
            bos_id=-1,
            eos_id=1,
            eos_piece=EOD,
            unk_id=0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"sentencepiece cannot make a vocabulary of {vocab_size} from this text ({error})"
        ) from None
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    return model.getvalue(), processor.vocab_size()
