"""Files that are there whole or not at all, and folders that one process has for itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text through a side file, making the folder; a crash leaves the old content or the new, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes through a side file, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + ".tmp")
    with side.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    side.replace(path)


LOCK = ".lock"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold a folder, making it, by a lock on its file .lock; yields the lock's file descriptor.

    The lock is free when this process and every one that inherited it have ended, however they did. Raises
    BlockingIOError while another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock.fileno()
