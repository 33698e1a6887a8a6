"""train_tokenizer: a byte-level BPE (tokenizer.json) or a sentencepiece model (.model) from any of the inputs."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import zstandard

from data_prep.commands.arguments import (
    add_read_arguments,
    add_unit_size,
    add_workers,
    amount,
    read_options,
)
from data_prep.reading.bad import BadRecordError
from data_prep.reading.chunks import Chunk, unit_chunks
from data_prep.reading.documents import load_text
from data_prep.reading.inputs import Unit, describe, files_of, find_inputs, plan_units
from data_prep.reading.records import ReadOptions
from data_prep.work.executors import Report, chunk_results
from data_prep.work.outputs import PLAN, Plan, check_writable, claimed, join_plan, work_folder
from data_prep.work.progress import Progress, Tick
from data_prep.work.stages import Stage
from latentpt.data.errors import DataError

EOD = "<|endoftext|>"
_TEXTS = "texts.jsonl.zst"
_LONGEST_LINE = 1 << 30  # bytes; the library leaves out lines over 4,192 unless told
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
    add_workers(parser)
    add_unit_size(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    files = find_inputs(arguments.input)
    size = train(
        plan_units(files, arguments.unit_size),
        read_options(arguments),
        Path(arguments.output),
        arguments.vocab_size,
        arguments.model_type,
        arguments.sample,
        arguments.workers,
    )
    print(f"{arguments.output}: {size} entries")


def train(
    units: Sequence[Unit],
    options: ReadOptions,
    output: Path,
    vocab_size: int,
    model_type: str,
    sample: int | None,
    workers: int = 1,
) -> int:
    """Train a tokenizer on the documents of `units` and write it to `output`; return the size of its vocabulary.

    Raises DataError when there is no text, when the vocabulary is too small for every byte or, for sentencepiece,
    too large for the text, and when `output` exists.
    """
    if output.suffix not in (".json", ".model"):
        raise DataError(
            f"{output}: name it .json for a byte-level BPE or .model for a sentencepiece tokenizer"
        )
    if vocab_size < _SMALLEST:
        raise DataError(f"--vocab-size {vocab_size} has no room for every byte; the smallest is {_SMALLEST}")
    if output.exists():
        raise DataError(f"{output}: exists already; name another output or delete it")
    work = work_folder(output)
    check_writable(work, None if (work / PLAN).is_file() else lambda _: False)
    made_with = {"command": "train_tokenizer", "sample": sample, **dataclasses.asdict(options)}
    join_plan(work, Plan(made_with, describe(files_of(units))), output)
    with claimed(work / "lock", output):
        texts = _sampled(units, options, sample, work, workers)
        content, size = (
            _byte_level_bpe(texts, vocab_size)
            if output.suffix == ".json"
            else _sentencepiece(texts, vocab_size, model_type)
        )
        (work / "tokenizer").write_bytes(content)
        (work / "tokenizer").replace(output)
    shutil.rmtree(work, ignore_errors=True)
    return size


def _sampled(
    units: Sequence[Unit], options: ReadOptions, sample: int | None, work: Path, workers: int
) -> Iterator[str]:
    """Texts of the documents, or of an even selection of about `sample` bytes of them."""
    total = sum(unit.size for unit in units)
    numbered = [(unit.index, unit) for unit in units]
    wanted = 1.0
    if sample is not None:
        counts = Stage(work, "count")
        with Progress(total, "counting") as progress:
            for _ in counts.run(
                partial(_collect, counts, options, 0.0), numbered, workers, "local", progress
            ):
                pass
        everything = sum(counts.result(unit.index)["text_bytes"] for unit in units)
        wanted = min(1.0, sample / max(everything, 1))
    texts = Stage(work, "texts")
    with Progress(total, "reading") as progress:
        for _ in texts.run(partial(_collect, texts, options, wanted), numbered, workers, "local", progress):
            pass
    results = [texts.result(unit.index) for unit in units]
    records, bad = (sum(result[name] for result in results) for name in ("records", "bad"))
    taken = sum(result["taken"] for result in results)
    print(f"{records:,} records read, {taken:,} documents to train on, {bad:,} bad ones passed over")
    if not taken:
        raise DataError(f"{units[0].pieces[0].file}: the input holds no document to train on")
    for unit in units:
        with zstandard.open(texts.folder(unit.index) / _TEXTS, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _collect(
    stage: Stage, options: ReadOptions, wanted: float, unit: Unit, helpers: int, report: Report
) -> dict[str, int]:
    """Write a share `wanted` of a unit's texts, chosen by their hashes, into its folder; return the counts."""
    folder = stage.folder(unit.index)
    result = dict.fromkeys(("records", "bad", "taken", "text_bytes"), 0)
    with zstandard.open(folder / _TEXTS, "wt", encoding="utf-8") as file:
        chunks = unit_chunks(unit, options, folder / "spool")
        for collected in chunk_results(partial(_Collector, options, wanted), chunks, helpers):
            file.writelines(collected.lines)
            for name in result:
                result[name] += collected.counts[name]
            counts = collected.counts
            good = counts["records"] - counts["bad"]
            report(Tick(collected.bytes_read, counts["records"], good, counts["text_bytes"]))
    return result


@dataclass
class _Collected:
    bytes_read: int
    lines: list[str]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Collector:
    options: ReadOptions
    wanted: float

    def __call__(self, chunk: Chunk) -> _Collected:
        lines, bad, text_bytes = [], 0, 0
        for record in chunk.records:
            try:
                document, text = load_text(record, chunk.format, self.options)
            except BadRecordError:
                bad += 1
                continue
            text_bytes += document.text_bytes
            if int.from_bytes(document.digest[8:16], "big") < self.wanted * 2**64:
                lines.append(json.dumps(text, ensure_ascii=False) + "\n")
        counts = {"records": len(chunk.records), "bad": bad, "taken": len(lines), "text_bytes": text_bytes}
        return _Collected(chunk.bytes_read, lines, counts)


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
            max_sentence_length=_LONGEST_LINE,
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
