"""Batches of rows, with everything that depends on their lengths worked out on the CPU beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentpt.data.order import Permutation
from latentpt.finetuning.layout import Layout, lay_out
from latentpt.finetuning.rows import IGNORE, Row


class Batch(NamedTuple):
    """Rows in one rectangle, padded on the right."""

    ids: Tensor
    """int64 [B, T]."""
    targets: Tensor
    """What each position predicts, int64 [B, T], -100 where nothing is learnt."""
    layout: Layout
    """Where positions and latents lie."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.ids.to(device), self.targets.to(device), self.layout.to(device))


def collate(rows: Sequence[Row], latent: int, cut: bool, passes: int = 1) -> Batch:
    """A batch of rows; with `cut` in segments, of which there are at least `passes`."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORE] * (width - len(row.labels)) for row in rows])
    layout = lay_out(ids, latent, mask, cut=cut, passes=passes)
    return Batch(ids, layout.targets(labels), layout)


def learnt(rows: Sequence[Row]) -> int:
    """Tokens that rows are trained to predict."""
    return sum(label != IGNORE for row in rows for label in row.labels[1:])


def latents(row: Row, latent: int) -> int:
    """Latents in a row."""
    return row.ids.count(latent)


def batch_indices(rows: int, batch: int, seed: int, epoch: int, number: int) -> list[int]:
    """Rows of batch `number` of an epoch: the epoch's order, whose last batch is filled up from its beginning."""
    places = np.arange(number * batch, (number + 1) * batch) % rows
    return Permutation(rows, seed, epoch)(places).tolist()
