"""Peak of live tensor memory, counted to the byte, on any device: real tensors or fake ones that hold no data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Context that watches every operation's results; `peak` is the most bytes alive at once beyond `outside`.

    Tensors that existed before (weights, optimizer states, the batch) are named in `outside` and not counted.
    """

    def __init__(self, outside: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        # The count goes by storage: views share one. A dead storage's key may come again, hence the weak references.
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._outside = [tensor.untyped_storage() for tensor in outside]
        for storage in self._outside:
            self._alive[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, Tensor) and tensor.device.type != "meta"
            ):  # a fake one says where it would be
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size
