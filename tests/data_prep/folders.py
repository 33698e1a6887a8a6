"""Corpora and shard folders for the tests of data_prep."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.__main__ import main
from latentpt.data.indexed import Shard
from latentpt.data.manifest import read_manifest
from latentpt.data.tokenizer import load_tokenizer


def lines(documents: list[str], source: str = "A") -> bytes:
    """The documents as Pile-style JSON lines."""
    return b"".join(
        json.dumps({"text": text, "meta": {"pile_set_name": source}}).encode() + b"\n" for text in documents
    )


def texts(folder: Path) -> list[str]:
    """Documents of a shard folder as text, end-of-document token cut off."""
    tokenizer = load_tokenizer(folder)
    found = []
    for info in read_manifest(folder).shards:
        for document in Shard(folder / info.name).documents():
            assert document[-1] == tokenizer.eod_id
            found.append(tokenizer.decode(document[:-1]))
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tokenize(tokenizer: Path, output: Path, *arguments: str | Path) -> int:
    """Run the command; its exit code."""
    fixed = ["tokenize", "--tokenizer", str(tokenizer), "--output", str(output), "--workers", "1"]
    return main([*fixed, *map(str, arguments)])
