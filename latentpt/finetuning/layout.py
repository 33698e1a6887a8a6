"""Where the positions of a padded batch lie: which are real, which are latent, and the segments between latents.

Every row is cut before each of its own latents, and the j-th segments of all rows make one rectangle, padded on the
right. So the j-th latent of every row is in the same column, whatever the rows look like, and

    passes = most latents in a row + 1.

    row 0    q q L a a          segment 0  q q .    segment 1  L a a    segment 2  . .
    row 1    q q q L L a                   q q q               L . .               L a
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.modeling.loss import IGNORE


class Segment(NamedTuple):
    """One rectangle of cells."""

    columns: Tensor
    """Column of the batch that each cell is, int64 [B, n]; 0 where there is none."""
    alive: Tensor
    """Whether there is one, bool [B, n]."""
    latent: Tensor
    """Whether it is a latent, bool [B, n]."""
    last: Tensor
    """Index of each row's last cell, int64 [B], -1 in a row without any."""


class Layout(NamedTuple):
    """A batch of B rows and T columns, as segments that run one after another."""

    segments: tuple[Segment, ...]
    positions: Tensor
    """Positions int64 [B, T]; 0 at padding."""
    place: Tensor
    """Index of each column among the cells of all segments, int64 [B, T]; 0 at padding."""
    successor: Tensor
    """Column of the next real position in the row, int64 [B, T]; -1 where there is none."""
    latents: tuple[Tensor, Tensor]
    """Rows and columns of the latents in the first segment, which has any only where nothing is cut."""
    padded: bool
    """Whether there is any cell without a position."""
    holes: bool
    """Whether one of those comes before a position, which must then be kept from seeing it: the last segment's padding
    comes after all that could."""

    def targets(self, labels: Tensor) -> Tensor:
        """What each position predicts, [B, T], from unshifted labels [B, T]: the label of the next real position."""
        found = labels.gather(1, self.successor.clamp(min=0))
        return found.masked_fill(self.successor < 0, IGNORE)

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        rows, columns = self.latents
        return Layout(
            tuple(Segment(*map(moved, segment)) for segment in self.segments),
            moved(self.positions),
            moved(self.place),
            moved(self.successor),
            (moved(rows), moved(columns)),
            self.padded,
            self.holes,
        )


def most_latents(ids: Tensor, latent_token: int) -> int:
    """The largest number of latents in a row of ids [B, T]."""
    return int((ids == latent_token).sum(dim=1).max())


def lay_out(
    ids: Tensor,
    latent_token: int,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    cut: bool = True,
    passes: int = 1,
) -> Layout:
    """The layout of ids int64 [B, T] with an attention mask [B, T] that is 0 at padding, wherever that is.

    Without `cut` all of it is one segment; empty segments are added up to `passes`. Positions count each row's real
    columns unless they are given. Raises ValueError for a latent without a position before it.
    """
    width = ids.shape[1]
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    latent = real & (ids == latent_token)
    rank = real.long().cumsum(dim=1) - 1
    if bool((latent & (rank == 0)).any()):
        raise ValueError("a latent needs a position before it, but a row begins with one")
    number = latent.long().cumsum(dim=1) if cut else torch.zeros_like(ids)
    packed = torch.argsort(real.logical_not().long(), dim=1, stable=True)  # real columns first, in order
    count = real.sum(dim=1)
    segments: list[Segment] = []
    place = torch.zeros_like(ids)
    offset, start = 0, torch.zeros_like(count)
    padded = holes = False
    for index in range(max(int(number[real].max()) + 1 if bool(real.any()) else 1, passes)):
        lengths = (real & (number == index)).sum(dim=1)
        size = max(int(lengths.max()), 1)
        inside = torch.arange(size)
        alive = inside.to(ids.device) < lengths[:, None]
        columns = packed.gather(1, (start[:, None] + inside.to(ids.device)).clamp(max=width - 1))
        columns = columns.where(alive, 0)
        cells = Segment(columns, alive, latent.gather(1, columns) & alive, lengths - 1)
        segments.append(cells)
        here = real & (number == index)
        place = torch.where(here, offset + rank - start[:, None], place)
        holes, padded = padded, padded or not bool(alive.all())
        offset, start = offset + size, start + lengths
    if positions is None:
        positions = rank.clamp(min=0)
    positions = positions.masked_fill(~real, 0)
    following = torch.nn.functional.pad(packed[:, 1:], (0, 1))
    known = torch.arange(width, device=ids.device) + 1 < count[:, None]
    successor = torch.full_like(ids, -1).scatter(1, packed, following.where(known, -1))
    rows, columns = segments[0].latent.nonzero(as_tuple=True)
    return Layout(tuple(segments), positions, place, successor, (rows, columns), padded, holes)
