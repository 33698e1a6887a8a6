"""Exit codes of the scripts; docs/running.md has them in a table."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from latentpt.config import ConfigError
from latentpt.data.errors import DataError

DONE = 0
STOPPED = 1
"""A training that diverged or broke off, a comparison that was stopped."""
REFUSED = 2
"""Input that cannot work, or an arm that failed."""
INTERRUPTED = 128 + signal.SIGINT


def to_nowhere(stream: TextIO) -> None:
    """Let what is still to be written to a stream, Python's last flush too, go nowhere instead of failing."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed, or no file at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def code_of(error: BaseException) -> int:
    """The exit code of a script that ends with an error; an error of ours may have an `exit_code` of its own."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return getattr(error, "exit_code", REFUSED) if isinstance(error, ConfigError | DataError) else STOPPED


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a script; what cannot work is one line on stderr, of one rank where there are several.

    An error of ours may say by `of_one_rank` that the first rank may not know of it.
    """
    try:
        work()
        sys.stdout.flush()
    except (ConfigError, DataError) as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0" or getattr(error, "of_one_rank", False):
            print(f"error: {error}" + (f" (rank {rank})" if rank != "0" else ""), file=sys.stderr, flush=True)
        return code_of(error)
    except BrokenPipeError:  # whoever reads our output has seen enough
        to_nowhere(sys.stdout)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    return DONE
