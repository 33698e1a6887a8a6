"""How well and in how much memory dedup finds near duplicates, beside signing with datasketch where it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path

from data_prep.__main__ import main
from data_prep.measure.processes import Took, measured
from data_prep.measure.synthetic import planted_documents
from data_prep.overlap.signatures import PLACES, signatures_of
from data_prep.overlap.words import words_of

SIMILARITIES = (0.7, 0.8, 0.85, 0.9)
_PAIRS = 500
_SIGNED = 2000  # documents signed for the comparison
_RUN = 5


def measure_duplicates(counts: list[int], workers: int) -> None:
    """Print, for each number of documents, recall by similarity, memory and time; then the memory a document."""
    taken: list[tuple[int, Took]] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "planted.jsonl"
            with path.open("w") as file:
                for text in planted_documents(count, SIMILARITIES, _PAIRS):
                    file.write(json.dumps({"text": text}) + "\n")
            size = path.stat().st_size
            for options in (["--exact-only"], []):
                took = measured(_dedup, str(path), f"{folder}/out{len(options)}", workers, options)
                print(
                    f"{count:,} documents, {size / 1e6:.0f} MB, {'exact' if options else 'exact and near'}: "
                    f"{size / took.cpu / 1e6:.1f} MB by CPU second, {took.own_memory / 1e6:.0f} MB in the parent, "
                    f"{took.child_memory / 1e6:.0f} MB in the largest worker"
                )
            taken.append((count, took))
            _print_recall(Path(folder) / "out0")
    for (fewer, first), (more, last) in itertools.pairwise(taken):
        grown = [
            (getattr(last, name) - getattr(first, name)) / (more - fewer)
            for name in ("own_memory", "child_memory")
        ]
        print(
            f"from {fewer:,} to {more:,}: {grown[0]:.1f} bytes a document in the parent, {grown[1]:.1f} in a worker"
        )
    _measure_signing()


def _dedup(path: str, output: str, workers: int, options: list[str]) -> None:
    if code := main(
        [
            "dedup",
            "--input",
            path,
            "--output",
            output,
            "--workers",
            str(workers),
            "--unit-size",
            "16M",
            *options,
        ]
    ):
        raise SystemExit(code)


def _print_recall(output: Path) -> None:
    found: Counter[float] = Counter()
    others = 0
    with (output / "removed.jsonl").open() as file:
        for line in file:
            entry = json.loads(line)
            group, second = divmod(entry["line"] - 1, 2 * _PAIRS)
            planted = group < len(SIMILARITIES) and second % 2 == 1
            if planted and entry["duplicate_of"].endswith(f":{entry['line'] - 1}"):
                found[SIMILARITIES[group]] += 1
            else:
                others += 1
    recall = ", ".join(f"{found[similarity] / _PAIRS:.1%} at {similarity}" for similarity in SIMILARITIES)
    print(
        f"  of {_PAIRS} planted pairs each: {recall} (the threshold is 0.8); other documents removed: {others}"
    )


def _measure_signing() -> None:
    ours = measured(_sign)
    base = measured(_texts)
    line = f"signing {_SIGNED:,} documents: {max(ours.cpu - base.cpu, 0):.2f} CPU s"
    if importlib.util.find_spec("datasketch"):
        line += f", with datasketch {measured(_sign_datasketch).cpu - base.cpu:.2f}"
    print(line)


def _texts() -> list[str]:
    return list(planted_documents(_SIGNED, (0.8,), _SIGNED // 2))


def _sign() -> None:
    texts = _texts()
    for first in range(0, len(texts), 100):
        signatures_of(texts[first : first + 100])


def _sign_datasketch() -> None:
    from datasketch import MinHash

    for text in _texts():
        words = words_of(text)
        runs = {" ".join(words[i : i + _RUN]).encode() for i in range(len(words) - _RUN + 1)}
        minhash = MinHash(PLACES)
        minhash.update_batch(runs)
