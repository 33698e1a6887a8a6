"""Bytes of files: plain and compressed blocks in bounded memory, with a hash of what was read.

A compressed stream that breaks off raises DamagedError: what was before the damage has been given by then.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

READ = 1 << 20
_READ_COMPRESSED = 1 << 13  # small, because a compressed byte can grow a thousandfold
_LARGEST_WINDOW = 1 << 31  # of zstd --ultra --long=31; the library's own limit of 128 MiB refuses --long=28

INFLATERS: dict[str, Callable[[], Any]] = {
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj(),
    ".gz": lambda: zlib.decompressobj(31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}
_ERRORS = (zstandard.ZstdError, zlib.error, lzma.LZMAError, OSError, EOFError)
_PADDED = (".gz", ".xz")  # zero bytes may follow their streams


class DamagedError(Exception):
    """A file cannot be read further; the message says why."""


class HashedReads:
    """Reads a file object and keeps sha256, number and line ends of the bytes read."""

    def __init__(self, file: BinaryIO) -> None:
        """Read `file` from where it stands."""
        self._file = file
        self.sha256 = hashlib.sha256()
        self.position = self.lines = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        data = self._file.read(size)
        self.sha256.update(data)
        self.position += len(data)
        self.lines += data.count(b"\n")
        return data


def inflated(read: Callable[[int], bytes], compression: str) -> Iterator[bytes]:
    """Decompressed blocks of all frames of a stream; raises DamagedError where it breaks off."""
    fresh = INFLATERS[compression]
    inflater = fresh()
    started = False
    while data := read(_READ_COMPRESSED):
        while data:
            if inflater.eof:
                if compression in _PADDED and not data.strip(b"\0"):
                    break
                inflater = fresh()
            started = True
            try:
                block = inflater.decompress(data)
            except _ERRORS as error:
                raise DamagedError(f"the {compression} stream is damaged ({error})") from None
            if block:
                yield block
            data = inflater.unused_data if inflater.eof else b""
    if not started or not inflater.eof:
        raise DamagedError(f"the {compression} stream ends early")


def plain(read: Callable[[int], bytes], length: int) -> Iterator[bytes]:
    """The next `length` bytes in blocks."""
    while length > 0 and (block := read(min(READ, length))):
        length -= len(block)
        yield block


def line_start(file: BinaryIO, position: int) -> int:
    """First byte at or after `position` at which a line starts (the file's end if none does)."""
    if position == 0:
        return 0
    file.seek(position - 1)
    at = position - 1
    while block := file.read(READ):
        newline = block.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += len(block)
    return at
