"""ZeRO-3's traces: in which order the modules of a forward and backward ask for their parameters, by which they are fetched ahead.

DeepSpeed keeps one and throws it away whenever a step runs its modules in another order, which drawn refinements, a
curriculum and every validation do; the step after that records, and only the one after runs ahead again. Here every
order that comes back has its own.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import Any

from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

PRIVATE = "_PartitionedParameterCoordinator__"
PARTS = ("trace_mode", "submodule_order", "param_order")


class Traces:
    """The traces of all programs that run under DeepSpeed's stage 3. `program` names the one that comes next."""

    def __init__(self, wrapper: Any) -> None:
        """`wrapper` is DeepSpeed's optimizer."""
        self.program: Hashable = None
        self._running: Hashable = None
        self._coordinator = wrapper.parameter_offload.get_param_coordinator()
        self._kept: dict[Hashable, tuple[Any, ...]] = {}
        self._reset = self._coordinator.reset_step
        if all(
            hasattr(self._coordinator, PRIVATE + part) for part in PARTS
        ):  # private names, of this version
            self._coordinator.reset_step = self._begin

    def _begin(self) -> None:
        """What DeepSpeed calls when a forward begins: complete the trace of the one before, and take up this one's."""
        self._reset()
        self._change()

    def _change(self) -> None:
        if self.program == self._running:
            return
        state = vars(self._coordinator)
        self._kept[self._running] = tuple(state[PRIVATE + part] for part in PARTS)
        fresh: tuple[Any, ...] = (ZeRoTraceMode.RECORD, [], [])
        for part, value in zip(PARTS, self._kept.pop(self.program, fresh), strict=True):
            state[PRIVATE + part] = value
        state[PRIVATE + "param_queue"] = collections.deque(state[PRIVATE + "param_order"])
        self._running = self.program
