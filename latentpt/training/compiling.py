"""torch.compile for the blocks of a model: as many graphs as there are shapes, each of them said, none run eagerly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MOST_GRAPHS = 512
"""Graphs that a block may have before dynamo gives up and runs it eagerly; its own limit of 8 is below what one
training needs."""


class Graphs:
    """Compiles graphs with a backend of torch.compile, counts them and says so.

    Layers share their graphs. A graph is made for each number of slots that run together, for each of these with and
    without gradient and with each kind of key blocks, and once more where the size of a batch varies or is 1; the number
    of passes makes none.

    Attributes:
        count: graphs made so far.
        say: what is called with a line for every graph.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.count = 0
        self.say: Callable[[str], None] = lambda line: None
        self._compile = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        """What dynamo calls for every new graph."""
        self.count += 1
        started = time.perf_counter()
        compiled = self._compile(graph, inputs)
        took = time.perf_counter() - started
        self.say(f"compiled graph {self.count} of the blocks in {took:.1f} s")
        return compiled


def compile_blocks(blocks: nn.ModuleList, backend: str = "inductor") -> Graphs:
    """torch.compile every block; never the loop over passes, so that their number compiles nothing anew.

    The blocks run as before until they are called; the graphs count from there.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, MOST_GRAPHS)
    graphs = Graphs(backend)
    for block in blocks:
        block.compile(backend=graphs)
    return graphs
