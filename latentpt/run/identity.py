"""Which data a run reads, said by its content: a name that changes when the shards do and not when they move."""

from __future__ import annotations

import hashlib
from pathlib import Path

from latentpt.data.batches import shard_folders
from latentpt.data.errors import DataError
from latentpt.data.indexed import bin_and_idx, shard_prefix
from latentpt.data.manifest import FILE_NAME


def data_identity(path: str | Path) -> str:
    """Hash of the manifests of a shard folder, or of the shard folders in it; a manifest holds the hashes of its shards.

    A pair without a manifest is named by its index and its size, for its tokens may be a terabyte. Raises DataError where
    there are no shards.
    """
    digest = hashlib.sha256()
    for folder in shard_folders(Path(path)):
        tokens, index = bin_and_idx(shard_prefix(folder))
        try:
            if index.is_file():
                digest.update(index.read_bytes() + str(tokens.stat().st_size).encode())
            else:
                digest.update((folder / FILE_NAME).read_bytes())
        except OSError as error:
            raise DataError(f"{folder}: cannot be read as shards ({error})") from None
    return digest.hexdigest()
