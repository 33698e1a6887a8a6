"""Which data a run is trained on, in a form that a checkpoint can keep and compare.

The identity of a source is a hash over its shards' hashes, their order and its tokenizer: moving or renaming a folder
does not change it, other or reordered shards do. So does another share in a mixture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from latentpt.data.batches import corpus_folders
from latentpt.data.config import DataConfig, SourceConfig
from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard, bin_and_idx, shard_prefix
from latentpt.data.manifest import read_manifest


def data_identity(config: DataConfig) -> dict[str, str]:
    """sha256 of every training source by its name, the part of its path that `data.train` gives it, in order.

    Reads the manifests and nothing of the shards; raises DataError as opening them does.
    """
    train = [config.train] if isinstance(config.train, str) else config.train
    identity: dict[str, str] = {}
    for source in train:
        if isinstance(source, SourceConfig):
            name, path = source.name or Path(source.path).name, source.path
            share = {"weight": source.weight, "epochs": source.epochs}
        else:
            name, path, share = Path(source).name, source, {}
        while name in identity:
            name += "'"  # one corpus may name the same folder twice
        identity[name] = source_identity(path, **share)
    return identity


def source_identity(path: str | Path, **share: float | None) -> str:
    """sha256 of a shard folder, or of the shard folders in it, by what they hold, and of its share in a mixture."""
    parts = [_folder(folder) for folder in corpus_folders(Path(path))]
    return hashlib.sha256(json.dumps([parts, share], sort_keys=True).encode()).hexdigest()


def check_identity(earlier: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise DataError, naming the first source that differs, unless a run goes on with the data it was begun with."""
    for name in earlier:
        if name not in now:
            raise DataError(f"data.train: the run was begun with the source {name!r}, which is not named now")
        if earlier[name] != now[name]:
            raise DataError(
                f"data.train: the source {name!r} is not the one the run was begun with (its shards, their order, its "
                "tokenizer or its share differ)"
            )
    for name in now:
        if name not in earlier:
            raise DataError(f"data.train: the run was begun without the source {name!r}")
    if [*earlier] != [*now]:
        raise DataError(f"data.train: the run was begun with its sources in the order {', '.join(earlier)}")


def _folder(path: Path) -> list[str | int | None]:
    """What a shard folder is told apart by; a pair without a manifest by its sizes and its index."""
    if bin_and_idx(shard_prefix(path))[1].is_file():
        shard = Shard(path)
        return [shard.num_tokens, hashlib.sha256(shard.idx_path.read_bytes()).hexdigest()]
    manifest = read_manifest(path)
    hashes = [part for info in manifest.shards for part in (info.bin_sha256, info.idx_sha256, info.tokens)]
    return [manifest.tokenizer.sha256, manifest.tokenizer.eod_id, *hashes]
