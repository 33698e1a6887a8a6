"""Where LT-Tuning's latents go: made once at the beginning of a stage from the weights reached, kept in a file.

The file makes an interrupted stage go on with the same latents although the weights that chose them are gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from latentpt.files import write_text
from latentpt.finetuning.batches import collate
from latentpt.finetuning.config import FinetuneConfig
from latentpt.finetuning.loss import confidences
from latentpt.finetuning.lt_tuning import insertions, plain_row
from latentpt.finetuning.reasoner import Recipe
from latentpt.finetuning.rows import Pieces
from latentpt.finetuning.stages import Stage
from latentpt.training.engine import Engine


class Insertions:
    """Latents of every training row, stage by stage."""

    def __init__(
        self, config: FinetuneConfig, engine: Engine, rows: list[Pieces], device: torch.device
    ) -> None:
        self.config, self.engine, self.rows, self.device = config, engine, rows, device
        self.known: dict[int, list[list[int]]] = {}

    def path(self, stage: Stage) -> Any:
        """File of a stage."""
        return self.config.folder.path / "stages" / f"stage-{stage.number}.json"

    def counts(self, stage: Stage, index: int) -> list[int] | None:
        """Latents before each token of a row's response; None where a stage has no latents."""
        if stage.insertion is None:
            return None
        if stage.number not in self.known:
            self.known[stage.number] = json.loads(self.path(stage).read_text(encoding="utf-8"))
        return self.known[stage.number][index]

    def make(self, stage: Stage, recipe: Recipe, mark: Callable[[str], None]) -> None:
        """Score every row by the weights reached and draw its latents, telling `mark` how far it is; collective."""
        assert stage.insertion is not None
        rank, world = dist.get_rank(), dist.get_world_size()
        micro = self.config.answers.batch
        found: dict[int, list[int]] = {}
        for first in range(0, len(self.rows), micro * world):
            mark(f"latents of stage {stage.number} from row {first}")
            # Ranks run equally many forwards; one whose share is empty repeats the first rows.
            mine = list(range(len(self.rows)))[first + rank * micro :][:micro] or [0]
            plain = [plain_row(self.rows[index]) for index in mine]
            batch = collate(plain, recipe.markers[2] if recipe.markers else -1, cut=False).to(self.device)
            p = self.engine.call(confidences, batch, recipe).cpu()
            for place, index in enumerate(mine):
                start = len(self.rows[index].question) - 1
                values = p[place, start : len(plain[place].ids) - 1].tolist()
                room = self.config.data.max_length - len(plain[place].ids)
                found[index] = insertions(
                    values, stage.insertion, self.config.seed, index, stage.number, room
                )
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, found)
        merged = {index: counts for part in parts for index, counts in part.items()}
        self.known[stage.number] = [merged[index] for index in range(len(self.rows))]
        if rank == 0:
            write_text(self.path(stage), json.dumps(self.known[stage.number]) + "\n")
        dist.barrier()
