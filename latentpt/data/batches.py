"""From shards to batches: fixed-length samples over all shards, shuffled streams of micro-batches, validation order.

Samples of L + 1 tokens are cut from the shards laid end to end, whatever document or shard they fall in, and overlap
by one token: sample i is tokens [i L, (i + 1) L]. Its first L tokens are inputs and its last L are labels, so every
token but the very first is a label exactly once an epoch. The state of a stream is one integer, samples seen.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard, bin_and_idx, shard_prefix
from latentpt.data.manifest import FILE_NAME, WORK, Manifest, read_manifest
from latentpt.data.order import shuffled

_DESCRIPTORS_LEFT = 256  # open files that others will need
_TOGETHER = 8  # micro-batches read at once


class SampleSource(Protocol):
    """What a stream reads from: a corpus or a mixture of several; see TokenDataset for the attributes."""

    limit: int | None
    sample_length: int
    num_tokens: int
    num_samples: int
    vocab_size: int | None
    eod_id: int | None
    location: str

    def read(self, positions: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
        """Samples at `positions` [k] of the endless shuffled stream of `seed`: [k, sample_length + 1]."""
        ...


class TokenDataset:
    """One corpus as samples of `sample_length` + 1 tokens over one or several shard folders.

    Attributes:
        num_tokens: tokens in all shards.
        num_samples: samples of an epoch, (num_tokens - 1) // sample_length.
        vocab_size: ids are below it, by the manifests; None for shards without a manifest.
        eod_id: id that ends a document, by the manifests; None when unknown.
        location: the paths, for messages.
        limit: ids that are read must be below it, see `check_vocabulary`; None: whatever lies there is read.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], sample_length: int) -> None:
        """Open shard folders, folders of them or single .bin/.idx pairs, in the order given.

        Raises DataError when a shard is missing or damaged, when the folders were made by different tokenizers or
        when there are too few tokens for one sample.
        """
        self.sample_length = sample_length
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        if not paths:
            raise DataError("no training data is given: name at least one shard folder")
        self.location = ", ".join(map(str, paths))
        self.shards: list[Shard] = []
        self.vocab_size: int | None = None
        self.eod_id: int | None = None
        self.limit: int | None = None
        first: tuple[Path, Manifest] | None = None
        for path in (folder for given in paths for folder in corpus_folders(Path(given))):
            manifest, shards = open_folder(path, random=True)
            self.shards += shards
            if manifest is None:
                continue
            if first is None:
                first = path, manifest
                self.vocab_size, self.eod_id = manifest.tokenizer.vocab_size, manifest.tokenizer.eod_id
            elif manifest.tokenizer != first[1].tokenizer:
                raise DataError(
                    f"{path}: was tokenized with another tokenizer than {first[0]}; tokenize both with one"
                )
        sizes = [shard.num_tokens for shard in self.shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.num_tokens = int(self._starts[-1])
        self.num_samples = (self.num_tokens - 1) // sample_length
        if self.num_samples < 1:
            raise DataError(
                f"{self.location}: has {self.num_tokens} tokens; one sample needs {sample_length + 1}"
            )

    def sample(self, index: int) -> NDArray[np.int64]:
        """Sample `index` in corpus order: [sample_length + 1]."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        return self._gather(np.array([index]))[0]

    def read(self, positions: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
        """Samples at `positions` [k] of the endless stream shuffled by `seed`: [k, sample_length + 1]."""
        return self._gather(shuffled(positions, self.num_samples, seed))

    def _gather(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        length = self.sample_length + 1
        rows = np.empty((len(indices), length), dtype=np.int64)
        starts = indices * self.sample_length
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        for row, start, number in zip(rows, starts.tolist(), shards.tolist(), strict=True):
            filled = 0
            while filled < length:
                offset = start + filled - int(self._starts[number])
                shard = self.shards[number]
                count = min(length - filled, shard.num_tokens - offset)
                row[filled : filled + count] = shard.read(offset, count)
                filled += count
                number += 1
        if (
            self.limit is not None and rows.view(np.uint64).max(initial=0) >= self.limit
        ):  # negative ones are huge
            raise self._beyond(rows, starts, self.limit)
        return rows

    def _beyond(self, rows: NDArray[np.int64], starts: NDArray[np.int64], limit: int) -> DataError:
        """What is wrong with rows that begin at the tokens `starts` of the corpus and hold an id that is not below `limit`."""
        row, column = map(int, np.argwhere(rows.view(np.uint64) >= limit)[0])
        token = int(starts[row]) + column
        number = int(np.searchsorted(self._starts, token, side="right")) - 1
        return DataError(
            f"{self.shards[number].bin_path}: token {token - int(self._starts[number])} is the id {rows[row, column]}, "
            f"but model.vocab_size = {limit}; the file is damaged or was made with another tokenizer",
            of_one_rank=True,
        )


def shard_folders(path: Path) -> list[Path]:
    """`path` itself, or the shard folders inside it when it is a folder without a manifest of its own.

    Raises DataError for a folder whose tokenization has not finished.
    """
    if (path / WORK).exists():
        raise DataError(f"{path}: its tokenization has not finished; start the same command again")
    if path.is_dir() and not (path / FILE_NAME).is_file():
        return sorted(manifest.parent for manifest in path.rglob(FILE_NAME)) or [path]
    return [path]


def corpus_folders(path: Path) -> list[Path]:
    """The shard folders of one corpus; raises DataError where a folder holds a training and a validation side."""
    folders = shard_folders(path)
    sides = {folder.relative_to(path).parts[0] for folder in folders if folder != path}
    if {"train", "validation"} <= sides:
        raise DataError(f"{path}: holds train and validation; name one of them, such as {path / 'train'}")
    return folders


def allow_descriptors(count: int) -> None:
    """Raise this process's limit of open files so that `count` more can be open, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/dev/fd")) + count + _DESCRIPTORS_LEFT  # noqa: PTH208  (counts, no paths)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_folder(path: Path, random: bool = False) -> tuple[Manifest | None, list[Shard]]:
    """Open a shard folder, checked against its manifest, or a single pair, which has none.

    `random` says that samples will be read from anywhere rather than in order.
    """
    if bin_and_idx(shard_prefix(path))[1].is_file():
        return None, [Shard(path, random)]
    manifest = read_manifest(path)
    shards = []
    allow_descriptors(len(manifest.shards))
    for info in manifest.shards:
        shard = Shard(path / info.name, random)
        if shard.dtype.name != manifest.dtype:
            raise DataError(
                f"{shard.idx_path}: says that ids are {shard.dtype}, but the manifest says {manifest.dtype}; "
                "the index was changed or belongs to another shard"
            )
        if (shard.num_tokens, shard.num_documents) != (info.tokens, info.documents):
            raise DataError(
                f"{shard.idx_path}: holds {shard.num_documents} documents and {shard.num_tokens} tokens, but the "
                f"manifest says {info.documents} and {info.tokens}; the folder mixes two tokenizations"
            )
        shards.append(shard)
    return manifest, shards


def check_vocabulary(dataset: SampleSource, vocab_size: int) -> None:
    """Let `dataset` give only ids that a model with `vocab_size` embedding rows can read.

    Raises DataError if its manifest says otherwise; an id that lies there all the same is a DataError when it is read.
    """
    if dataset.vocab_size is not None and dataset.vocab_size > vocab_size:
        raise DataError(
            f"{dataset.location}: was tokenized with a vocabulary of {dataset.vocab_size} ids, "
            f"but model.vocab_size = {vocab_size}; set model.vocab_size to at least {dataset.vocab_size}"
        )
    dataset.limit = vocab_size


class BatchStream:
    """Endless micro-batches [micro_batch, L + 1] (int64) of one rank, read ahead by one thread.

    The global batch of step s holds the shuffled samples start_sample + [s G, (s + 1) G); micro-step j of rank r takes
    its rows j * world * m + r * m + [0, m). So the order of samples does not depend on the number of ranks.
    """

    def __init__(
        self,
        dataset: SampleSource,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_sample: int = 0,
        prefetch: int = 4,
    ) -> None:
        """`global_batch` and `micro_batch` count samples; `start_sample` is the `samples_seen` of an earlier stream.

        Raises DataError when the global batch is not a multiple of micro_batch * world.
        """
        if global_batch % (micro_batch * world):
            raise DataError(
                f"a global batch of {global_batch} samples cannot be cut into micro-batches of {micro_batch} on {world} "
                f"ranks; the nearest that can is {max(1, round(global_batch / (micro_batch * world))) * micro_batch * world}"
            )
        self.micro_steps = global_batch // (micro_batch * world)
        self._dataset, self._seed, self._global_batch = dataset, seed, global_batch
        self._rows = np.arange(micro_batch) + rank * micro_batch
        self._micro_stride = micro_batch * world
        self._start = start_sample
        self._delivered = 0
        self._ready: queue.Queue[Tensor | BaseException] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)
        self._thread.start()

    @property
    def samples_seen(self) -> int:
        """Samples, over all ranks, of the global batches delivered in full: the loader's whole state."""
        return self._start + self._delivered // self.micro_steps * self._global_batch

    def _fill(self) -> None:
        first = 0
        try:
            while not self._stop.is_set():
                # Several micro-batches a read: finding out which samples they are costs the same as for one.
                step, micro_step = np.divmod(np.arange(first, first + _TOGETHER), self.micro_steps)
                starts = self._start + step * self._global_batch + micro_step * self._micro_stride
                positions = starts[:, None] + self._rows
                samples = torch.from_numpy(self._dataset.read(positions.ravel(), self._seed))
                for batch in samples.view(*positions.shape, -1):
                    self._put(batch)
                first += _TOGETHER
        except Exception as error:  # handed to the consumer, who raises it
            self._put(error)

    def _put(self, item: Tensor | BaseException) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._delivered += 1
        return item

    def close(self) -> None:
        """Stop the thread; the stream ends."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


def validation_batches(
    dataset: TokenDataset, micro_batch: int, limit_samples: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Batches [b, L + 1] (int64) in corpus order, b <= micro_batch; batch k goes to rank k modulo world.

    `limit_samples` reads that many, evenly spread over the corpus; together the ranks read each of them exactly once.
    """
    total = dataset.num_samples if limit_samples is None else min(limit_samples, dataset.num_samples)
    chosen = [index * dataset.num_samples // total for index in range(total)]
    for first in range(rank * micro_batch, total, world * micro_batch):
        rows = [dataset.sample(index) for index in chosen[first : first + micro_batch]]
        yield torch.from_numpy(np.stack(rows))
