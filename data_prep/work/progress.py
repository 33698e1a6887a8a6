"""Progress of a long job: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Counts input bytes, documents and tokens, and shows rates and the time left on standard error."""

    def __init__(self, total_bytes: int) -> None:
        """`total_bytes` of input are to be read."""
        self.total, self.bytes, self.skipped = total_bytes, 0, 0
        self.documents = self.tokens = self.text_bytes = 0
        self.started = self._shown = time.monotonic()
        self._bar = (
            tqdm(total=total_bytes, unit="B", unit_scale=True, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def skip(self, input_bytes: int) -> None:
        """Input that an earlier start has done."""
        self.skipped += input_bytes
        self.bytes += input_bytes
        if self._bar is not None:
            self._bar.initial += input_bytes
            self._bar.update(input_bytes)

    def add(self, input_bytes: int, documents: int, tokens: int, text_bytes: int) -> None:
        """Input done now."""
        self.bytes += input_bytes
        self.documents += documents
        self.tokens += tokens
        self.text_bytes += text_bytes
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(input_bytes)
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def _rates(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.documents / seconds:,.0f} documents/s {self.text_bytes / seconds / 1e6:,.1f} MB/s "
            f"{self.tokens / seconds / 1e3:,.0f}k tokens/s"
        )

    def line(self) -> str:
        """The state as one line."""
        done = self.bytes / self.total if self.total else 1.0
        new = self.bytes - self.skipped
        left = (self.total - self.bytes) * self.seconds / new if new else 0.0
        return f"{done:6.1%}  {self._rates()}  {left:,.0f} s left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
