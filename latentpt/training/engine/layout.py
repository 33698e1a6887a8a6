"""Where the fp32 masters lie: the tensors that the optimizer updates, and which stretch of which parameter each holds.

    ZeRO 0       every parameter is its own master, whole on every rank
    ZeRO 1, 2    one flat master a parameter group: this rank's stretch of all its parameters, laid end to end
    ZeRO 3       one flat master a sub-group: this rank's part of every one of its parameters, the last rank's padded

Whatever has the shape of a master (moments, averages) is divided alike, so state is read and written, and a matrix
is brought together, in one way at every stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MASTERS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""Under which name DeepSpeed's wrappers keep them: stage 3; stages 1 and 2; stage 1 in bf16."""


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole shape of a parameter, also of one that stage 3 has divided already."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@dataclass(frozen=True)
class Piece:
    """The part of a flattened parameter whose master lies on this rank; it may be empty."""

    master: int
    """Number of the master, the same on all ranks."""
    at: int
    """Where in the master it begins."""
    start: int
    """Where in the parameter it begins."""
    length: int
    """Its elements."""

    def of(self, master: Tensor) -> Tensor:
        """The piece of a master, or of what is divided like it: a flat view."""
        return master.detach().view(-1)[self.at : self.at + self.length]

    def of_whole(self, whole: Tensor) -> Tensor:
        """The piece of the whole parameter, flat."""
        return whole.reshape(-1)[self.start : self.start + self.length]


class Layout:
    """Masters and pieces of one training.

    Attributes:
        masters: what the optimizer updates, fp32.
        shapes: whole shapes of the trainable parameters by name.
        pieces: this rank's piece of every parameter.
        lengths: of every parameter the elements of each rank's piece; pieces lie in the order of ranks.
    """

    def __init__(
        self,
        wrapper: Any,
        stage: int,
        names: Mapping[str, nn.Parameter],
        shapes: Mapping[str, tuple[int, ...]],
        groups: Sequence[Sequence[nn.Parameter]],
    ) -> None:
        """`wrapper` is DeepSpeed's optimizer, `groups` are the optimizer's parameters as they were before it divided them."""
        self.shapes = dict(shapes)
        self.masters: list[Tensor] = list(names.values()) if stage == 0 else _masters(wrapper)
        group_of = {parameter: number for number, group in enumerate(groups) for parameter in group}
        self.pieces: dict[str, Piece] = {}
        for number, (name, parameter) in enumerate(names.items()):
            if stage == 0:
                self.pieces[name] = Piece(number, 0, 0, self.size(name))
            elif stage == 3:
                self.pieces[name] = self._part(wrapper, name, parameter)
            else:
                self.pieces[name] = _stretch(parameter, group_of[parameter])
        everyone: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, [self.pieces[name].length for name in names])
        self.lengths = {
            name: list(each) for name, each in zip(names, zip(*everyone, strict=True), strict=True)
        }

    def size(self, name: str) -> int:
        """Elements of a whole parameter."""
        return math.prod(self.shapes[name])

    def gather(self, name: str, parts: Sequence[Tensor], device: torch.device) -> Tensor:
        """A whole tensor of a parameter's shape from all ranks' `parts`, which are divided like the masters; collective."""
        piece = self.pieces[name]
        mine = piece.of(parts[piece.master])
        if min(self.lengths[name]) == self.size(name):  # all ranks have all of it
            return mine.view(self.shapes[name]).to(device)
        whole = torch.zeros(self.size(name), device=device)
        piece.of_whole(whole).copy_(mine)
        dist.all_reduce(whole)  # where a rank has no piece it adds zeros
        return whole.view(self.shapes[name])

    def scatter(self, name: str, whole: Tensor, parts: Sequence[Tensor]) -> None:
        """Inverse of `gather`: write this rank's piece of a whole tensor into `parts`."""
        piece = self.pieces[name]
        piece.of(parts[piece.master]).copy_(piece.of_whole(whole))

    def _part(self, wrapper: Any, name: str, parameter: nn.Parameter) -> Piece:
        """Stage 3: parts of equal length on all ranks, the last one's padded."""
        master, at, length = wrapper.grad_position[wrapper.get_param_id(parameter)]
        start = min(length * dist.get_rank(), self.size(name))
        return Piece(master, at, start, min(length, self.size(name) - start))


def _stretch(parameter: Any, group: int) -> Piece:
    """Stages 1 and 2: what of it falls into this rank's stretch of the group."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return Piece(group, 0, 0, 0)
    master, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Piece(group, master.start, whole.start, master.numel)


def _masters(wrapper: Any) -> list[Tensor]:
    for attribute in MASTERS:
        if hasattr(wrapper, attribute):
            return list(getattr(wrapper, attribute))
    raise AssertionError(f"{type(wrapper).__name__} keeps its master weights in an unknown place")
