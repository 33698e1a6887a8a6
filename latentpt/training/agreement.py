"""Whether ranks that should hold the same parameters do: memory and devices fail in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from latentpt.config import ConfigError

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RanksDisagreeError(ConfigError):
    """Ranks hold different parameters where each should have a copy of the same."""

    exit_code = 1  # the input was fine


def checksums(tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of the bits of every tensor read as integers: int64 [tensors], on their device, equal in any order of adding."""
    return torch.stack(
        [t.detach().view(INTEGERS[t.element_size()]).sum(dtype=torch.int64) for t in tensors.values()]
    )


class Agreement:
    """Compares the parameters of ranks: `post` on the device, and `check` when the host waits for it anyway."""

    def __init__(self) -> None:
        self._posted: tuple[int, list[str], list[Tensor]] | None = None

    def post(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Exchange the checksums of `tensors`, which all ranks should have alike after `step`; collective."""
        if dist.get_world_size() > 1 and tensors:
            mine = checksums(tensors)
            all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(all_of_them, mine)
            self._posted = step, [*tensors], all_of_them

    def check(self) -> None:
        """Raise RanksDisagreeError, on all ranks, if those posted last were not the same."""
        if self._posted is None:
            return
        step, names, sums = self._posted
        self._posted = None
        if problem := disagreement(names, torch.stack(sums).tolist()):
            raise RanksDisagreeError(
                f"after step {step} {problem}; memory or a device is at fault, the same command goes on from the "
                "latest checkpoint"
            )


def disagreement(names: Sequence[str], sums: Sequence[Sequence[int]]) -> str:
    """Who differs from most, and in which parameter first, by the checksums [ranks][names]; empty if nobody does."""
    for index, name in enumerate(names):
        values = [rank[index] for rank in sums]
        counts = Counter(values)
        if len(counts) == 1:
            continue
        (usual, most), (_, next_most) = counts.most_common(2)
        if most == next_most:
            return f"ranks disagree about {name}, and no value of it is that of most"
        others = [rank for rank, value in enumerate(values) if value != usual]
        who = f"rank {others[0]} holds" if len(others) == 1 else f"ranks {', '.join(map(str, others))} hold"
        return f"{who} another {name} than the others"
    return ""
