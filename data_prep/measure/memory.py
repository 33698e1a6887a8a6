"""How much memory tokenize takes, whatever the length of the input and of a document."""

from __future__ import annotations

import tempfile
from pathlib import Path

from data_prep.measure.processes import measured
from data_prep.measure.synthetic import synthetic_documents
from data_prep.measure.throughput import tokenize_into


def measure_memory(size: int, tokenizer: str, workers: int) -> None:
    """Tokenize `size` bytes of generated text and print the peak memory of the parent and of its largest child."""
    with tempfile.TemporaryDirectory() as folder:  # TMPDIR says where there is room
        path = Path(folder) / "synthetic.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for text in synthetic_documents(size):
                file.write('{"text": "')
                file.writelines(text)
                file.write('"}\n')
        print(f"{path.stat().st_size / 1e9:.2f} GB of generated text, one document of {size / 1e10:.2f} GB")
        took = measured(tokenize_into, str(Path(folder) / "out"), [str(path)], tokenizer, workers)
    print(
        f"{size / took.cpu / 1e6:.1f} MB by CPU second, {took.cpu:.0f} CPU s, {took.seconds:.0f} s by the clock"
    )
    print(
        f"peak memory    {took.own_memory / 1e6:.0f} MB in the parent, {took.child_memory / 1e6:.0f} MB in the largest "
        f"of {workers} workers"
    )
