"""Progress of a long job: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Tick(NamedTuple):
    """A bit of work that is done."""

    input_bytes: int
    """Bytes of input read."""
    records: int = 0
    """Records in them."""
    documents: int = 0
    """Those that became documents."""
    text_bytes: int = 0
    """UTF-8 bytes of the documents."""
    tokens: int = 0
    """Tokens made of them."""
    reason: str = ""
    """The commonest reason why records became none."""

    def plus(self, other: Tick) -> Tick:
        """Both together."""
        sums = (mine + theirs for mine, theirs in zip(self[:5], other[:5], strict=True))
        return Tick(*sums, self.reason or other.reason)


class Progress:
    """Adds up what is done and shows rates and the time left on standard error."""

    def __init__(self, total_bytes: int, name: str = "") -> None:
        """`total_bytes` of input are to be read; `name` says which step it is."""
        self.total, self.name, self.skipped = total_bytes, name, 0
        self.done = Tick(0)
        self.started = self._shown = time.monotonic()
        self._bar = (
            tqdm(total=total_bytes, desc=name or None, unit="B", unit_scale=True, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def skip(self, input_bytes: int) -> None:
        """Input that an earlier start has done."""
        self.skipped += input_bytes
        if self._bar is not None:
            self._bar.initial += input_bytes
            self._bar.update(input_bytes)

    def add(self, tick: Tick) -> None:
        """Work done now."""
        self.done = self.done.plus(tick)
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(tick.input_bytes)
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def _rates(self) -> str:
        seconds = max(self.seconds, 1e-9)
        done = self.done
        rates = f"{done.documents / seconds:,.0f} documents/s {done.text_bytes / seconds / 1e6:,.1f} MB/s"
        return f"{rates} {done.tokens / seconds / 1e3:,.0f}k tokens/s" if done.tokens else rates

    def line(self) -> str:
        """The state as one line."""
        new = self.done.input_bytes
        reached = self.skipped + new
        share = reached / self.total if self.total else 1.0
        left = max(self.total - reached, 0) * self.seconds / new if new else 0.0
        return f"{self.name + ' ' if self.name else ''}{share:6.1%}  {self._rates()}  {left:,.0f} s left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
