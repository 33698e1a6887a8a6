"""The shard format: round trips, the exact bytes, damage."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentpt.data.errors import DataError
from latentpt.data.indexed import Shard, ShardWriter, token_dtype

SHARED = Path(os.environ.get("LATENTPT_SHARED", Path(__file__).parents[3] / "shared"))
DOCUMENTS = [[1, 2, 3, 0], [4, 0], [5, 6, 7, 8, 0]]


def write(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> Path:
    with ShardWriter(prefix, dtype) as shard:
        for document in documents:
            shard.add_document(document)
    return prefix


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=30), max_size=30),
    dtype=st.sampled_from([np.uint16, np.int32]),
)
def test_documents_come_back_as_written(tmp_path: Path, documents: list[list[int]], dtype: type) -> None:
    shard = Shard(write(tmp_path / "s", documents, dtype))
    assert [d.tolist() for d in shard.documents()] == documents
    assert (shard.num_documents, shard.num_tokens) == (len(documents), sum(map(len, documents)))
    assert shard.tokens.tolist() == [token for document in documents for token in document]


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "s", DOCUMENTS)
    assert (tmp_path / "s.bin").read_bytes() == struct.pack("<11H", *itertools.chain(*DOCUMENTS))
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
    expected += struct.pack("<3i", 4, 2, 5) + struct.pack("<3q", 0, 8, 12) + struct.pack("<4q", 0, 1, 2, 3)
    assert (tmp_path / "s.idx").read_bytes() == expected


def test_a_document_written_in_pieces_is_one_document(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", np.int32) as shard:
        shard.write([1, 2])
        shard.write([3])
        shard.end_document()
    assert [d.tolist() for d in Shard(tmp_path / "s").documents()] == [[1, 2, 3]]


def test_the_dtype_is_the_smallest_that_holds_the_vocabulary() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


def test_an_id_too_large_for_the_dtype_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="65536 does not fit uint16"),
        ShardWriter(tmp_path / "s", np.uint16) as s,
    ):
        s.add_document([65536])
    assert list(tmp_path.iterdir()) == []


def test_sequences_are_grouped_into_documents(tmp_path: Path) -> None:
    lengths, documents = [2, 3, 1, 4], [0, 2, 2, 4]
    (tmp_path / "s.bin").write_bytes(np.arange(10, dtype="<u2").tobytes())
    offsets = [0, 4, 10, 12]
    (tmp_path / "s.idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 4, 4)
        + struct.pack("<4i", *lengths) + struct.pack("<4q", *offsets) + struct.pack("<4q", *documents)
        + bytes(4)
    )  # fmt: skip
    shard = Shard(tmp_path / "s")
    assert [d.tolist() for d in shard.documents()] == [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9]]


def test_without_document_boundaries_every_sequence_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "s.bin").write_bytes(np.arange(6, dtype="<u2").tobytes())
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 1)
    (tmp_path / "s.idx").write_bytes(header + struct.pack("<2i2q1q", 3, 3, 0, 6, 0))
    assert [d.tolist() for d in Shard(tmp_path / "s.bin").documents()] == [[0, 1, 2], [3, 4, 5]]


def _patched(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, b"TNTIDX\x00\x00", "old TNTIDX format"),
        (0, b"X", "does not start with MMIDIDX"),
        (9, struct.pack("<Q", 2), "format version 2"),
        (17, b"\x06", "dtype code 6"),
        (18, struct.pack("<Q", 2**63), "damaged or truncated"),
        (26, struct.pack("<Q", 3), "damaged or truncated"),
        (34, struct.pack("<i", -4), "sequence 0 has a negative length"),
        (34 + 4, struct.pack("<i", 3), "offset of sequence 2"),
        (34 + 12 + 8, struct.pack("<q", 6), "offset of sequence 1"),
        (34 + 36, struct.pack("<q", 1), "document index runs from 1 to 3"),
        (34 + 36 + 8, struct.pack("<q", 9), "not in ascending order"),
        (34 + 8, struct.pack("<i", 6), r"s\.bin: is 22 bytes long, but s.idx describes 12 tokens"),
    ],
)
def test_a_damaged_index_is_refused_with_its_reason(
    tmp_path: Path, position: int, value: bytes, reason: str
) -> None:
    write(tmp_path / "s", DOCUMENTS)
    path = tmp_path / "s.idx"
    path.write_bytes(_patched(path.read_bytes(), position, value))
    with pytest.raises(DataError, match=reason):
        Shard(tmp_path / "s")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_truncated_or_missing_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "s", DOCUMENTS).with_suffix(suffix)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"s\{suffix}: "):
            Shard(tmp_path / "s")
    path.unlink()
    with pytest.raises(DataError, match=rf"s\{suffix}: there is no such file"):
        Shard(tmp_path / "s")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 101), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    cut=st.integers(0, 110),
    extra=st.binary(max_size=9),
)
def test_a_fuzzed_index_is_read_in_bounds_or_refused(
    tmp_path: Path, edits: list[tuple[int, bytes]], cut: int, extra: bytes
) -> None:
    write(tmp_path / "s", DOCUMENTS)
    path = tmp_path / "s.idx"
    data = path.read_bytes()
    for position, value in edits:
        data = _patched(data, position, value)
    path.write_bytes((data[: len(data) - cut] if cut < 20 else data) + extra)
    try:
        shard = Shard(tmp_path / "s")
    except DataError as error:
        assert str(tmp_path / "s") in str(error)
    else:
        assert sum(len(d) for d in shard.documents()) == shard.num_tokens
        assert shard.num_tokens * shard.dtype.itemsize == (tmp_path / "s.bin").stat().st_size


@pytest.mark.skipif(not (SHARED / "data/megatron").is_dir(), reason="needs the shared Megatron pair")
def test_a_pair_written_by_megatron_is_read() -> None:
    shard = Shard(SHARED / "data/megatron/openwebtext/meg-gpt2-openwebtext_text_document")
    assert (shard.num_documents, shard.num_tokens, shard.dtype) == (1000, 1361845, np.uint16)
    assert sum(len(d) for d in shard.documents()) == 1361845


def test_a_shard_that_shrinks_is_named_and_one_that_is_deleted_or_replaced_is_read_on(tmp_path):
    shard = Shard(write(tmp_path / "s", [range(1000)], np.uint16))
    bin_path = tmp_path / "s.bin"
    assert shard.read(990, 10).tolist() == list(range(990, 1000))
    (tmp_path / "other").write_bytes(bytes(2000))
    (tmp_path / "other").replace(bin_path)
    assert shard.read(5, 2).tolist() == [5, 6]
    bin_path.unlink()
    assert shard.read(5, 2).tolist() == [5, 6] and shard.tokens[7] == 7

    shard = Shard(write(tmp_path / "t", [range(1000)], np.uint16))
    os.truncate(tmp_path / "t.bin", 1981)
    assert shard.read(980, 10).tolist() == list(range(980, 990))
    with pytest.raises(DataError, match=r"t\.bin: has become shorter .* before token 1000 of 1000"):
        shard.read(985, 15)


def test_an_open_shard_is_one_descriptor_and_gives_it_back(tmp_path):
    write(tmp_path / "s", [range(10)], np.uint16)
    before = len(list(Path("/dev/fd").iterdir()))
    shards = [Shard(tmp_path / "s") for _ in range(5)]
    assert [shard.read(3, 1)[0] for shard in shards] == [3] * 5
    assert len(list(Path("/dev/fd").iterdir())) == before + 5
    del shards
    assert len(list(Path("/dev/fd").iterdir())) == before
