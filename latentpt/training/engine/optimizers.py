"""Which parameters are updated how: AdamW, and Muon for the matrices of the blocks.

Muon moves a matrix by its momentum, orthogonalised. It needs whole matrices, and ZeRO divides them: a matrix that lies
whole on a rank is orthogonalised there (all of them at stage 0, most at 1 and 2), the others are brought together, one
on each rank at a time, and the result goes back the same way. What is computed is the same at every stage; torch's
own Muon, with which ours agrees, knows no partitions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentpt.modeling.decoder import Block
from latentpt.run.sections import OptimizerConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.training.engine.layout import Layout, shape_of

ADAM = ("exp_avg", "exp_avg_sq")
"""Adam's moments: running means of the gradient and of its square."""
MUON = ("momentum",)
"""Muon's: the running mean of the gradient."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial a x + b x^3 + c x^5 that drives singular values from (0, 1] to about 1 (Jordan et al. 2024)."""


def parameter_groups(model: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of parameters that are updated alike: `muon`, `weight_decay` and `scale`, the factor on the learning rate.

    Matrices (linear weights, embeddings, head) decay, vectors (biases, norm weights) and gates do not: decay keeps
    matrices from growing; a norm's weight or a bias has no scale to trade against another layer's. Modules whose attribute
    `decays` is False are left out as well. Muon takes the matrices of the blocks that decay.
    """
    spared = {p for m in model.modules() if not getattr(m, "decays", True) for p in m.parameters()}
    hidden = {p for m in model.modules() if isinstance(m, Block) for p in m.parameters()}
    rates = {p: r for m in model.modules() if isinstance(m, LanguageModel) for p, r in m.rates().items()}
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decays = len(shape_of(parameter)) >= 2 and parameter not in spared
        muon = optimizer.kind == "muon" and decays and parameter in hidden
        rate = rates.get(parameter, 1.0)
        if muon and optimizer.adjust == "match_rms_adamw":
            rate = math.sqrt(
                rate
            )  # of an update whose largest singular value grows with the root of the width
        elif muon:
            rate = 1.0
        decay = (
            optimizer.weight_decay / rate if decays else 0.0
        )  # what a step takes away is the same at every width
        scale = rate * (optimizer.matrix_lr or optimizer.lr) / optimizer.lr if muon else rate
        settings = {"muon": muon, "weight_decay": decay, "scale": scale}
        groups.setdefault((not muon, not decays, rate), {"params": [], **settings})["params"].append(
            parameter
        )
    return [groups[key] for key in sorted(groups)]


def make_optimizer(model: nn.Module, optimizer: OptimizerConfig, precision: str, fused: bool) -> Optimizer:
    """The optimizer of a model whose parameters are whole; `fused` takes AdamW's kernel that updates all at once."""
    half = torch.bfloat16 if precision != "fp32" else torch.float32
    return Optimizer(parameter_groups(model, optimizer), optimizer, half, fused)


class Optimizer(torch.optim.AdamW):
    """AdamW; parameters of groups marked `muon` are updated by Muon instead.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): with momentum beta, gradient g and matrix W [m, n],

        M <- beta M + (1 - beta) g          u = beta M + (1 - beta) g           (Nesterov)
        W <- (1 - lr decay) W - lr r orthogonal(u)

    r is sqrt(max(1, m / n)) (`original`), or 0.2 sqrt(max(m, n)), with which an update has the size of AdamW's, so one
    learning rate and decay serve both (`match_rms_adamw`; Liu et al. 2025, arXiv 2502.16982, equation 4). Matrices that
    lie in one weight (`stacked` of its module) are orthogonalised one by one.
    """

    def __init__(
        self, groups: list[dict[str, Any]], settings: OptimizerConfig, dtype: torch.dtype, fused: bool
    ) -> None:
        super().__init__(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
        self.room: Path | None = None  # a folder in whose files the moments lie
        self._momentum, self._adjust, self._dtype = settings.momentum, settings.adjust, dtype

    def divide(self, model: nn.Module, layout: Layout, muon: set[str], device: torch.device) -> None:
        """Take note of where the masters lie, and begin with moments of zero; `muon` names the matrices Muon updates.

        The state is the one that would be created at the first step, so that it can be read and written at any time.
        """
        self._layout, self._device = layout, device
        stacked = {f"{name}.weight": getattr(m, "stacked", None) for name, m in model.named_modules()}
        self._rows = {name: stacked.get(name) or (layout.shapes[name][0],) for name in muon}
        self._named: dict[Tensor, list[str]] = {master: [] for master in layout.masters}
        for name in layout.shapes:
            if name in muon:
                self._named[layout.masters[layout.pieces[name].master]].append(name)
        for master in layout.masters:
            keys = MUON if self._named[master] else ADAM
            steps = torch.zeros((), device=master.device if self.defaults["fused"] else "cpu")
            moments = {key: self._zeros(master) for key in keys}
            self.state[master] = {"step": steps, **moments}

    def _zeros(self, master: Tensor) -> Tensor:
        """A moment of a master."""
        if self.room is None:
            return torch.zeros_like(master, requires_grad=False)
        self.room.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.room, prefix="latentpt-moments-") as file:
            file.truncate(
                master.numel() * master.element_size()
            )  # zeros, and no block of the disk before one is written
            # The file loses its name here; it stays as long as it is mapped, and no longer.
            return torch.from_file(file.name, shared=True, size=master.numel(), dtype=master.dtype).view_as(
                master
            )

    def moments(self, name: str) -> tuple[str, ...]:
        """Names of a parameter's moments."""
        return MUON if name in self._rows else ADAM

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every master that has a gradient; collective."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step(closure)
        self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        """Muon's step for the masters of a group."""
        masters = [master for master in group["params"] if master.grad is not None]
        directions: dict[Tensor, Tensor] = {}
        for master in masters:
            state = self.state[master]
            state["step"] += 1
            state["momentum"].lerp_(master.grad, 1 - self._momentum)
            directions[master] = master.grad.lerp(state["momentum"], self._momentum)
            master.mul_(1 - group["lr"] * group["weight_decay"])
        names = [name for master in masters for name in self._named[master]]
        parts = {
            name: self._layout.pieces[name].of(directions[master])
            for master in masters
            for name in self._named[master]
        }
        for name, piece in self._orthogonal(names, parts):
            place = self._layout.pieces[name]
            master = self._layout.masters[place.master]
            place.of(master).sub_(piece.to(master.device), alpha=group["lr"])

    def _orthogonal(self, names: Sequence[str], parts: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """This rank's piece of every update; of a matrix of which it has none, an empty one."""
        divided = []
        for name in names:
            lengths, mine = self._layout.lengths[name], len(parts[name])
            if max(lengths) < self._layout.size(name):
                divided.append(name)
            elif mine:
                yield name, self._whole_update(name, parts[name])
        world = dist.get_world_size()
        for start in range(0, len(divided), world):
            some = divided[start : start + world]
            yield from zip(some, self._exchanged(some, parts), strict=True)

    def _exchanged(self, names: Sequence[str], parts: dict[str, Tensor]) -> list[Tensor]:
        """Pieces of the updates of one matrix a rank: the i-th is computed by rank i."""
        rank, world = dist.get_rank(), dist.get_world_size()
        mine = [len(parts[name]) for name in names] + [0] * (world - len(names))
        theirs = self._layout.lengths[names[rank]] if rank < len(names) else [0] * world
        whole = torch.empty(sum(theirs), device=self._device)
        pieces = torch.cat([parts[name].to(self._device) for name in names])
        dist.all_to_all_single(whole, pieces, theirs, mine)
        if rank < len(names):
            whole = self._whole_update(names[rank], whole)
        dist.all_to_all_single(pieces, whole, mine, theirs)
        return list(pieces.split(mine[: len(names)]))

    def _whole_update(self, name: str, flat: Tensor) -> Tensor:
        """r orthogonal(u) of a whole matrix, flat, fp32."""
        matrices = flat.to(self._device).view(self._layout.shapes[name]).split(self._rows[name])
        updates = [
            orthogonalize(matrix, self._dtype).float() * adjustment(self._adjust, *matrix.shape)
            for matrix in matrices
        ]
        return torch.cat(updates).flatten()


def adjustment(kind: str, rows: int, columns: int) -> float:
    """The factor r on the learning rate of a matrix [rows, columns], see `Optimizer`."""
    if kind == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def orthogonalize(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """U V^T of the matrix U S V^T [m, n], roughly: singular values end between 0.7 and 1.2; computed in `dtype`.

    Newton and Schulz's iteration on the side that is shorter, from the matrix over its Frobenius norm.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.to(dtype)
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T, dtype, steps).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
