"""convert: token files of Megatron, Pythia, Hugging Face, nanoGPT and Parquet into each other, streaming."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.commands.arguments import amount
from data_prep.reading.inputs import describe
from data_prep.tokens.encoding import end_of_document
from data_prep.tokens.sinks import ListSink, RawSink, ShardSink, Sink
from data_prep.tokens.sources import Layout, Piece, TokenFile, find_token_files
from data_prep.work.outputs import PLAN, Plan, check_name, check_writable, claimed, join_plan, work_folder
from data_prep.work.progress import Progress, Tick
from latentpt.data.errors import DataError
from latentpt.data.indexed import bin_and_idx, token_dtype
from latentpt.data.manifest import FILE_NAME, Counts, Manifest, TokenizerRecord, read_manifest
from latentpt.data.tokenizer import Tokenizer, load_tokenizer

TARGETS = ("shards", "arrow", "parquet", "raw")


@dataclass(frozen=True)
class Vocabulary:
    """What is known of the ids."""

    size: int | None
    """Ids are below it; None when nobody says."""
    eod_id: int | None
    tokenizer: Tokenizer | None

    @property
    def record(self) -> dict[str, str | int | None]:
        """The part of a manifest's tokenizer record that is known before the ids were seen."""
        file = f"tokenizer{self.tokenizer.path.suffix}" if self.tokenizer else None
        return {
            "file": file,
            "sha256": self.tokenizer.sha256 if self.tokenizer else None,
            "eod_id": self.eod_id,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help=".idx/.bin pairs (parts of one .bin are joined), shard folders, dataset folders, .arrow, .parquet, raw .bin",
    )
    parser.add_argument("--to", choices=TARGETS, default="shards", help="what to write (default: shards)")
    parser.add_argument("--output", required=True, help="folder to write, or the file for --to raw")
    parser.add_argument("--name", help="first part of the shards' names (default: the output folder's name)")
    parser.add_argument(
        "--tokenizer", help="tokenizer that made the ids; copied to the shards (default: the input's own)"
    )
    parser.add_argument("--vocab-size", type=amount, help="ids are below it (default: the tokenizer's)")
    parser.add_argument("--eod-id", type=int, help="id that ends documents (default: the tokenizer's)")
    parser.add_argument("--bos-id", type=int, help="for raw input: id that starts documents, as in llama2.c")
    parser.add_argument("--column", default="input_ids", help="column of token lists (default: input_ids)")
    parser.add_argument(
        "--raw-dtype",
        choices=["uint16", "int32", "uint32", "int64"],
        default="uint16",
        help="type of the ids in raw input (default: uint16)",
    )
    parser.add_argument(
        "--dtype", choices=["uint16", "int32"], help="type to write (default: by the vocabulary)"
    )
    parser.add_argument(
        "--shard-tokens", type=amount, default="500M", help="tokens of an output file, about (default: 500M)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    files = find_token_files(arguments.input)
    vocabulary = find_vocabulary(files, arguments.tokenizer, arguments.vocab_size, arguments.eod_id)
    splits_at_eod = arguments.bos_id is None
    layout = Layout(
        arguments.column, arguments.raw_dtype, vocabulary.eod_id if splits_at_eod else None, arguments.bos_id
    )
    dtype = np.dtype(arguments.dtype) if arguments.dtype else choose_dtype(files, vocabulary, layout)
    counts = convert(
        files,
        layout,
        vocabulary,
        Path(arguments.output),
        arguments.to,
        check_name(arguments.name) if arguments.name else None,
        dtype,
        arguments.shard_tokens,
    )
    print(f"{arguments.output}: {counts.documents:,} documents, {counts.tokens:,} tokens")


def find_vocabulary(
    files: Sequence[TokenFile], tokenizer: str | None, size: int | None, eod_id: int | None
) -> Vocabulary:
    """What the command line or, failing that, the input's manifest says of the ids."""
    folder = (files[0].index or files[0].paths[0]).parent
    manifest = read_manifest(folder).tokenizer if (folder / FILE_NAME).is_file() else None
    if tokenizer is None and manifest and manifest.file:
        tokenizer = str(folder / manifest.file)
    loaded = load_tokenizer(tokenizer) if tokenizer else None
    if eod_id is None and manifest:
        eod_id = manifest.eod_id
    if eod_id is None and loaded:
        eod_id = end_of_document(loaded, None)
    if size is None:
        size = loaded.vocab_size if loaded else manifest.vocab_size if manifest else None
    return Vocabulary(size, eod_id, loaded)


def choose_dtype(files: Sequence[TokenFile], vocabulary: Vocabulary, layout: Layout) -> np.dtype:
    """uint16 or int32: by the vocabulary, else uint16 for inputs that are uint16 themselves."""
    if vocabulary.size is not None:
        return token_dtype(vocabulary.size)
    wide = (file.is_wide(layout) for file in files)
    return np.dtype(np.int32) if any(wide) else np.dtype(np.uint16)


def convert(
    files: Sequence[TokenFile],
    layout: Layout,
    vocabulary: Vocabulary,
    output: Path,
    target: str,
    name: str | None,
    dtype: np.dtype,
    shard_tokens: int,
) -> Counts:
    """Write the ids of `files` to `output` as `target`; return what was written.

    Everything is written beside `output` and renamed when it is complete; what is finished of it survives an
    interruption. Raises DataError for ids outside the vocabulary or the dtype, for damaged input and when `output`
    exists already.
    """
    if output.exists():
        raise DataError(f"{output}: exists already; name another output or delete it")
    work = work_folder(output)
    check_writable(work, None if (work / PLAN).is_file() else lambda _: False)
    made_with = {
        "command": "convert",
        "to": target,
        "name": name,
        "dtype": dtype.name,
        "shard_tokens": shard_tokens,
        **dataclasses.asdict(layout),
    }
    join_plan(work, Plan(made_with, describe(str(path) for file in files for path in file.paths)), output)
    try:
        with claimed(work / "lock", output):
            counts = _write(
                files, layout, vocabulary, work / "output", output.name, target, name, dtype, shard_tokens
            )
            (work / "output" / "raw.bin" if target == "raw" else work / "output").replace(output)
    except DataError:  # the input's fault: the next start would come here again
        shutil.rmtree(work)
        raise
    shutil.rmtree(work)
    return counts


def _write(
    files: Sequence[TokenFile],
    layout: Layout,
    vocabulary: Vocabulary,
    folder: Path,
    output_name: str,
    target: str,
    name: str | None,
    dtype: np.dtype,
    shard_tokens: int,
) -> Counts:
    folder.mkdir(exist_ok=True)
    if target == "shards":
        sink: Sink = ShardSink(folder, name or output_name, dtype, shard_tokens)
    elif target == "raw":
        sink = RawSink(folder / "raw.bin", dtype)
    else:
        sink = ListSink(folder, target, layout.column, dtype, shard_tokens)
    documents = tokens = 0
    largest, ends_marked = -1, vocabulary.eod_id is not None
    for ids, ends in _all_pieces(files, layout, vocabulary.size):
        if documents >= sink.finished:
            sink.write(ids, ends)
        documents, tokens = documents + ends, tokens + len(ids)
        ends_marked &= not ends or (len(ids) > 0 and int(ids[-1]) == vocabulary.eod_id)
        largest = max(largest, int(ids.max())) if len(ids) else largest
    if not tokens:
        raise DataError(f"{files[0].paths[0]}: the input holds no token")
    shards = sink.close()
    known = _known_sources(files)
    counts = Counts(
        documents=documents, tokens=tokens, text_bytes=sum(counts.text_bytes for counts in known.values())
    )
    if target == "shards":
        record = TokenizerRecord.model_validate(
            {**vocabulary.record, "vocab_size": vocabulary.size or largest + 1}
        )
        if vocabulary.tokenizer and record.file:
            shutil.copyfile(vocabulary.tokenizer.path, folder / record.file)
        Manifest(
            tokenizer=record,
            dtype=dtype.name,
            counts=counts,
            ends_marked=ends_marked,
            sources=known,
            shards=shards,
            records_in=documents,
            inputs=[
                {"file": str(path), "bytes": path.stat().st_size} for file in files for path in file.paths
            ],
            options={"converted_from": sorted({file.kind for file in files})},
        ).write(folder)
    return counts


def _known_sources(files: Sequence[TokenFile]) -> dict[str, Counts]:
    """Counts by source, from the manifests of the shard folders whose shards `files` are, all of them; else nothing."""
    indices = {file.index for file in files}
    total: defaultdict[str, Counts] = defaultdict(Counts)
    for folder in sorted({file.paths[0].parent for file in files}):
        if not (folder / FILE_NAME).is_file():
            return {}
        manifest = read_manifest(folder)
        if not all(bin_and_idx(folder / info.name)[1] in indices for info in manifest.shards):
            return {}
        for source, counts in manifest.sources.items():
            total[source] += counts
    return dict(sorted(total.items()))


def _all_pieces(files: Sequence[TokenFile], layout: Layout, vocab_size: int | None) -> Iterator[Piece]:
    """Pieces of all files, checked against the vocabulary, with their progress."""
    with Progress(sum(file.size for file in files), "converting") as progress:
        for file in files:
            reported = 0
            for ids, ends in file.pieces(layout):
                if len(ids) and (
                    int(ids.min()) < 0 or (vocab_size is not None and int(ids.max()) >= vocab_size)
                ):
                    worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                    raise DataError(
                        f"{file.paths[0]}: holds the id {worst}, outside the vocabulary of {vocab_size}"
                    )
                step = min(ids.nbytes, file.size - reported)  # lists are larger in memory than in a file
                reported += step
                progress.add(Tick(step, ends, ends, 0, len(ids)))
                yield ids, ends
            progress.add(Tick(file.size - reported))
