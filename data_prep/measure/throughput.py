"""How fast tokenize is: beside the tokenizers library by itself and, where it is installed, datatrove."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from data_prep.__main__ import main
from data_prep.measure.processes import Took, measured
from data_prep.reading.documents import read_texts
from data_prep.reading.inputs import plan_units
from data_prep.reading.records import PieceReader, ReadOptions

_BATCH = 64  # documents a call of encode_batch gets
_OURS, _LIBRARY, _DATATROVE = "tokenize", "encode_batch", "datatrove"


def measure_throughput(files: list[str], tokenizer: str, workers: int, rounds: int) -> None:
    """Print MB of text by CPU second of each, in turns A B B A, the best of each, and their ratios to ours."""
    text_bytes = sum(document.text_bytes for document, _ in read_texts(files, ReadOptions()))
    print(f"{text_bytes / 1e6:.1f} MB of text, {workers} workers; MB of text by CPU second, start included")
    ways: dict[str, Callable[[], Took]] = {
        _LIBRARY: lambda: measured(_encode_batch, files, tokenizer, workers),
        _OURS: lambda: measured(_tokenize, files, tokenizer, workers, "auto"),
    }
    if importlib.util.find_spec("datatrove"):
        ways[_DATATROVE] = lambda: measured(_datatrove, files, tokenizer)
    reading = measured(_read, files)
    taken: dict[str, list[Took]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            taken[name].append(ways[name]())
    print(f"{'reading':14} {text_bytes / reading.cpu / 1e6:8.2f} MB/s, records without parsing")
    best = {name: min(took.cpu for took in all_taken) for name, all_taken in taken.items()}
    for name, cpu in best.items():
        clock = min(took.seconds for took in taken[name])
        print(f"{name:14} {text_bytes / cpu / 1e6:8.2f} MB/s  {cpu:7.2f} CPU s  {clock:7.2f} s by the clock")
    for name in ways:
        if name != _OURS:
            print(f"tokenize / {name}: {best[name] / best[_OURS]:.1f}")
    larger = max(max(took.own_memory, took.child_memory) for took in taken[_OURS])
    print(f"tokenize       {larger / 1e6:.0f} MB in the largest process")


def _read(files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as spool:
        for unit in plan_units(files, 1 << 40):
            for piece in unit.pieces:
                for _ in PieceReader(piece, ReadOptions(), Path(spool)):
                    pass


def _encode_batch(files: list[str], tokenizer: str, threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(tokenizer)
    texts = [text for _, text in read_texts(files, ReadOptions())]
    for first in range(0, len(texts), _BATCH):
        loaded.encode_batch(texts[first : first + _BATCH], add_special_tokens=False)


def _tokenize(files: list[str], tokenizer: str, workers: int, backend: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenize_into(str(Path(folder) / "out"), files, tokenizer, workers, "--backend", backend)


def tokenize_into(output: str, files: list[str], tokenizer: str, workers: int, *options: str) -> None:
    """Run the command; raises SystemExit when it fails."""
    fixed = ["--input", *files, "--tokenizer", tokenizer, "--output", output, "--workers", str(workers)]
    if code := main(["tokenize", *fixed, *options]):
        raise SystemExit(code)


def _datatrove(files: list[str], tokenizer: str) -> None:
    os.environ["LOGURU_AUTOINIT"] = "0"
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            (Path(folder) / "in").mkdir(exist_ok=True)
            (Path(folder) / "in" / Path(file).name).symlink_to(Path(file).resolve())
        LocalPipelineExecutor(
            pipeline=[
                JsonlReader(f"{folder}/in"),
                DocumentTokenizer(
                    f"{folder}/out",
                    tokenizer_name_or_path=tokenizer,
                    eos_token="<|endoftext|>",
                    shuffle_documents=False,
                ),
            ],
            logging_dir=f"{folder}/logs",
        ).run()
