"""bench: how fast and in how much memory, each figure beside what it is to be compared with, in one run.

--input, --tokenizer    tokenize beside the tokenizers library's encode_batch and datatrove over the same documents
--synthetic 10G         peak memory of tokenize on generated text, a tenth of it one document
--duplicates 200K 800K  recall of planted near duplicates, and memory a document
--shards                the loader's tokens/s from the page cache, its start far into the stream, cold reads
"""

from __future__ import annotations

import argparse

from data_prep.commands.arguments import add_workers, amount
from data_prep.reading.inputs import find_inputs
from latentpt.data.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--input", nargs="+", help="documents to tokenize")
    parser.add_argument("--tokenizer", help="tokenizer.json to tokenize with")
    add_workers(parser)
    parser.add_argument(
        "--rounds",
        type=amount,
        default=2,
        help="times each way is measured, in turn; the best counts (default: 2)",
    )
    parser.add_argument(
        "--synthetic", type=amount, help="bytes of text to generate and tokenize for the memory figure"
    )
    parser.add_argument(
        "--duplicates",
        type=amount,
        nargs="+",
        help="numbers of documents to look for planted near duplicates in",
    )
    parser.add_argument("--shards", nargs="+", help="shard folders for the loader's figures")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if not (arguments.input or arguments.synthetic or arguments.duplicates or arguments.shards):
        raise DataError("bench needs --input, --synthetic, --duplicates or --shards")
    if (arguments.input or arguments.synthetic) and not arguments.tokenizer:
        raise DataError("bench needs a --tokenizer to tokenize with")
    if arguments.input:
        from data_prep.measure.throughput import measure_throughput

        measure_throughput(
            find_inputs(arguments.input), arguments.tokenizer, arguments.workers, arguments.rounds
        )
    if arguments.synthetic:
        from data_prep.measure.memory import measure_memory

        measure_memory(arguments.synthetic, arguments.tokenizer, arguments.workers)
    if arguments.duplicates:
        from data_prep.measure.duplicates import measure_duplicates

        measure_duplicates(arguments.duplicates, arguments.workers)
    if arguments.shards:
        from data_prep.measure.loader import measure_loader

        measure_loader(arguments.shards)
