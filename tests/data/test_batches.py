"""Samples, streams and their one-integer state."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from latentpt.data.batches import BatchStream, TokenDataset, check_vocabulary, validation_batches
from latentpt.data.errors import DataError
from latentpt.data.indexed import ShardWriter
from latentpt.data.manifest import Counts, Manifest, TokenizerRecord

LENGTH = 8


def make_folder(
    folder: Path, sizes: list[int], vocab_size: int = 60000, first: int = 0, sha256: str = "a"
) -> Path:
    """A shard folder whose tokens are first, first + 1, ...; one shard a size, documents of five tokens."""
    folder.mkdir()
    infos, start = [], first
    for number, size in enumerate(sizes):
        with ShardWriter(folder / f"t-{number:05d}-of-{len(sizes):05d}", np.uint16) as shard:
            for at in range(start, start + size, 5):
                shard.add_document(np.arange(at, min(at + 5, start + size)))
        infos.append(_info(folder / f"t-{number:05d}-of-{len(sizes):05d}"))
        start += size
    documents = sum(info["documents"] for info in infos)
    Manifest(
        tokenizer=TokenizerRecord(file=None, sha256=sha256, vocab_size=vocab_size, eod_id=0),
        dtype="uint16",
        counts=Counts(documents=documents, tokens=sum(sizes)),
        shards=infos,
        records_in=documents,
    ).write(folder)
    return folder


def _info(prefix: Path) -> dict:
    from latentpt.data.indexed import Shard

    shard = Shard(prefix)
    return {
        "name": prefix.name,
        "documents": shard.num_documents,
        "tokens": shard.num_tokens,
        "bin_sha256": "",
        "idx_sha256": "",
    }


@pytest.fixture
def dataset(tmp_path: Path) -> TokenDataset:
    return TokenDataset(make_folder(tmp_path / "d", [100, 3, 1, 200, 29]), LENGTH)


def test_every_token_of_an_epoch_is_a_label_exactly_once(dataset: TokenDataset) -> None:
    assert dataset.num_samples == (333 - 1) // LENGTH
    rows = dataset.read(np.arange(dataset.num_samples), seed=3)
    labels = np.sort(rows[:, 1:].ravel())
    assert np.array_equal(labels, np.arange(1, dataset.num_samples * LENGTH + 1))
    assert np.array_equal(rows[:, 1:] - 1, rows[:, :-1])


def test_a_sample_runs_across_shards(dataset: TokenDataset) -> None:
    for index in range(dataset.num_samples):
        assert dataset.sample(index).tolist() == list(range(index * LENGTH, (index + 1) * LENGTH + 1))
    with pytest.raises(IndexError):
        dataset.sample(dataset.num_samples)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(dataset: TokenDataset, world: int) -> None:
    reference = torch.from_numpy(dataset.read(np.arange(64), seed=7)).view(4, 16, LENGTH + 1)
    ranks = []
    for rank in range(world):
        with BatchStream(dataset, 7, global_batch=16, micro_batch=2, rank=rank, world=world) as stream:
            ranks.append(torch.stack(list(islice(stream, 4 * stream.micro_steps))))
    # [rank, step, micro-step, row] -> rows of the global batch lie micro-step by micro-step, rank by rank
    batches = torch.stack(ranks).view(world, 4, -1, 2, LENGTH + 1).permute(1, 2, 0, 3, 4)
    assert torch.equal(batches.reshape(4, 16, LENGTH + 1), reference)


def test_a_stream_resumes_from_samples_seen_with_another_batch_and_world(dataset: TokenDataset) -> None:
    with BatchStream(dataset, 7, global_batch=8, micro_batch=4) as stream:
        read = list(islice(stream, 5))
        assert stream.samples_seen == 16  # two whole global batches and a half
    with BatchStream(dataset, 7, global_batch=4, micro_batch=4, start_sample=16) as resumed:
        assert torch.equal(next(resumed), read[4])
        assert resumed.samples_seen == 20


def test_a_stream_far_into_its_epochs_starts_at_once(dataset: TokenDataset) -> None:
    with BatchStream(dataset, 7, global_batch=4, micro_batch=4, start_sample=10**9) as stream:
        assert np.array_equal(next(stream).numpy(), dataset.read(np.arange(10**9, 10**9 + 4), 7))


def test_an_impossible_batch_names_the_nearest_possible_one(dataset: TokenDataset) -> None:
    with pytest.raises(DataError, match="nearest that can is 12"):
        BatchStream(dataset, 0, global_batch=13, micro_batch=2, world=2)


def test_an_error_while_reading_ahead_reaches_the_consumer(dataset: TokenDataset) -> None:
    class Broken:
        sample_length = LENGTH

        def read(self, positions: np.ndarray, seed: int) -> np.ndarray:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        next(BatchStream(Broken(), 0, 1, 1))


@pytest.mark.parametrize("world", [1, 3])
def test_validation_reads_every_sample_once_in_corpus_order(dataset: TokenDataset, world: int) -> None:
    batches = [list(validation_batches(dataset, 4, rank=rank, world=world)) for rank in range(world)]
    ordered = [batches[k % world][k // world] for k in range(sum(map(len, batches)))]
    rows = torch.cat(ordered)
    assert rows[:, 0].tolist() == [index * LENGTH for index in range(dataset.num_samples)]


def test_validation_can_be_limited(dataset: TokenDataset) -> None:
    assert [len(batch) for batch in validation_batches(dataset, 4, limit_samples=10)] == [4, 4, 2]


def test_several_folders_are_one_corpus(tmp_path: Path) -> None:
    paths = [make_folder(tmp_path / "a", [50]), make_folder(tmp_path / "b", [51], first=50)]
    both = TokenDataset(paths, LENGTH)
    assert (both.num_tokens, both.vocab_size, both.eod_id) == (101, 60000, 0)
    assert both.sample(6).tolist() == list(range(48, 57))


def test_folders_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    paths = [make_folder(tmp_path / "a", [50]), make_folder(tmp_path / "b", [50], sha256="b")]
    with pytest.raises(DataError, match="another tokenizer"):
        TokenDataset(paths, LENGTH)


def test_a_corpus_too_short_for_one_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 8 tokens; one sample needs 9"):
        TokenDataset(make_folder(tmp_path / "a", [8]), LENGTH)


def test_a_folder_without_manifest_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", [50])
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vocab_size"', '"vocab"'))
    with pytest.raises(DataError, match=r"manifest\.json: is damaged .*tokenizer.vocab"):
        TokenDataset(folder, LENGTH)
    manifest.unlink()
    with pytest.raises(DataError, match=r"a: has no manifest\.json"):
        TokenDataset(folder, LENGTH)


def test_shards_of_another_tokenization_are_refused(tmp_path: Path) -> None:
    folder, other = make_folder(tmp_path / "a", [50]), make_folder(tmp_path / "b", [60])
    for suffix in (".bin", ".idx"):
        (other / f"t-00000-of-00001{suffix}").replace(folder / f"t-00000-of-00001{suffix}")
    with pytest.raises(DataError, match="the manifest says 10 and 50"):
        TokenDataset(folder, LENGTH)


def test_a_vocabulary_larger_than_the_models_is_refused(dataset: TokenDataset) -> None:
    check_vocabulary(dataset, 60000)
    with pytest.raises(DataError, match=r"set model\.vocab_size to at least 60000"):
        check_vocabulary(dataset, 50000)


def test_an_index_of_another_dtype_than_the_manifest_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", [100])
    path = next(folder.glob("*.idx"))
    content = bytearray(path.read_bytes())
    content[17] = 3  # int16, of the same size: ids from 32,768 on would be negative
    path.write_bytes(content)
    with pytest.raises(DataError, match="says that ids are int16, but the manifest says uint16"):
        TokenDataset(folder, LENGTH)


def test_more_shards_than_the_limit_of_open_files_are_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", [9] * 300)
    code = (
        "import os, resource, sys; from latentpt.data.batches import TokenDataset; import numpy as np; "
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE); resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); "
        f"data = TokenDataset({str(folder)!r}, 8); "
        "print(data.read(np.arange(data.num_samples), 0).shape[0], len(os.listdir('/dev/fd')))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    samples, descriptors = map(int, answer.stdout.split())
    assert samples == (300 * 9 - 1) // 8
    assert descriptors < 300 + 32  # one a shard: the .idx is closed once it is checked


def test_an_id_that_the_model_has_not_is_named_with_its_shard_and_place(tmp_path):
    corpus = TokenDataset(make_folder(tmp_path / "d", [100, 50]), LENGTH)
    damaged = tmp_path / "d" / "t-00001-of-00002.bin"
    content = bytearray(damaged.read_bytes())
    content[14:16] = (60000).to_bytes(2, "little")
    damaged.write_bytes(content)
    assert 60000 in corpus.sample(13)  # nobody has said what is too large
    check_vocabulary(corpus, 60000)
    with pytest.raises(DataError, match=r"t-00001-of-00002\.bin: token 7 is the id 60000, but model.vocab_"):
        corpus.sample(13)
    with pytest.raises(DataError, match="token 7 is the id 60000"), BatchStream(corpus, 0, 2, 2) as stream:
        for _ in range(20):
            next(stream)
    assert corpus.sample(12)[-1] == 104


def test_a_negative_id_is_named(tmp_path):
    with ShardWriter(tmp_path / "s", np.int32) as shard:
        shard.add_document([1, 2, -3, 4, 5, 6, 7, 8, 9, 10])
    corpus = TokenDataset(tmp_path / "s", LENGTH)
    check_vocabulary(corpus, 11)
    with pytest.raises(DataError, match="token 2 is the id -3"):
        corpus.sample(0)
