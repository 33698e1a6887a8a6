"""A step of decoding as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


class Captured:
    """A function of tensors that never change place, run as one launch on CUDA and as it is elsewhere.

    `step` reads and writes tensors that stay where they are, asks the device nothing, and returns its result. The first
    `warmups` calls run it as it is, so that kernels are compiled and chosen; the next one records it. Recording runs
    nothing, so there is nothing to put back. What cannot be recorded goes on as it is, with one warning that says why.
    """

    def __init__(self, step: Callable[[], Tensor], device: torch.device, warmups: int = 3) -> None:
        self.step, self.device = step, device
        self.warmups: int | None = warmups if device.type == "cuda" else None
        """Calls until the step is recorded; None: never."""
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Tensor:
        """Run the step; what it returned is overwritten by the next call."""
        if self.graph is None and self.warmups == 0:
            with torch.cuda.device(self.device):
                self._capture()
        if self.graph is not None:
            self.graph.replay()
            return self.result
        if self.warmups is not None:
            self.warmups -= 1
        return self.step()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread alone: what loads data in another one may ask the device for memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.result = self.step()
        except RuntimeError as error:
            self.warmups = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"latentpt_kernels: decoding is not recorded as a CUDA graph, which is slow ({reason[:200]})",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            self.graph = graph
