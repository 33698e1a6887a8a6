"""A step of decoding as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Captured:
    """A function of tensors that never change place, run as one launch on CUDA and as it is elsewhere.

    `step` reads and writes tensors it holds, asks the device nothing, and returns its result, which every call fills
    anew. `state` are the tensors that it moves on (cells, caches' lengths): they are put back after the runs that warm
    it up and capture it.
    """

    def __init__(self, step: Callable[[], Tensor], state: list[Tensor], warmups: int = 3) -> None:
        self.step = step
        self.graph: torch.cuda.CUDAGraph | None = None
        if not state or not state[0].is_cuda:
            return
        before = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmups):
                step()
                _restore(state, before)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = step()
        _restore(state, before)

    def __call__(self) -> Tensor:
        """Run the step; the result is overwritten by the next call."""
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.result


def _restore(state: list[Tensor], before: list[Tensor]) -> None:
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)
