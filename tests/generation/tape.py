"""A CUDA graph for a machine without one: the operations of a step, recorded once and run again on the same tensors.

As in a graph, what the host decided while recording stays decided: only what lies in tensors moves on. Recording fails
where CUDA's would: at operations that ask the device, and at tensors made from the host's numbers.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "equal", "unique")


class Tape(TorchDispatchMode):
    """Records what runs inside it."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        assert name not in FORBIDDEN, f"{func} cannot be recorded"
        out = func(*args, **(kwargs or {}))
        self.entries.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        """Run everything again; results appear where they were."""
        for func, args, kwargs, out in self.entries:
            again = func(*args, **kwargs)
            if any(answer.alias_info is not None for answer in func._schema.returns):
                continue  # a view of what is up to date, or what was written in place
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


class Recorded:
    """Stands in for `latentpt_kernels.graph.Captured`: as on CUDA, some runs, then a recording, then replays."""

    made = ()

    def __init__(self, step, device, warmups=2):
        self.step, self.warmups, self.tape, self.replays = step, warmups, None, 0
        Recorded.made = (*Recorded.made, self)

    def __call__(self):
        if self.warmups:
            self.warmups -= 1
            return self.step()
        if self.tape is None:
            # CUDA runs nothing while it records; here the recording is the first run.
            self.tape = Tape()
            with self.tape:
                self.result = self.step()
        else:
            self.tape.replay()
            self.replays += 1
        return self.result
