"""Are the thoughts used? What the loss becomes without them, and what they look like.

fewer         loss when only the first k thoughts are thought
replaced      loss when every latent, or every state carried in time, is its mean, another document's, or noise of the same
              size; and when nothing is carried
collapse      are the latents all alike: cosine of pairs, share of the first component, effective rank, size
residual      how far the training forward is from exact decoding, position by position
attention     share of the predicting slot's attention that goes to latent slots, layer by layer
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.evaluation.results import Figures
from latentpt.intervals import Mean, ratio_of
from latentpt.seeding import stream
from latentpt.thoughts.documents import document_ids
from latentpt.thoughts.measure import prediction, sample_sums
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Column, Step, Stretch
from latentpt.thoughts.state import Before
from latentpt.thoughts.watch import Watch


class Collapse(NamedTuple):
    """How much the latents of one slot differ from one another."""

    slot: int
    """Latent slot, from 1."""
    cosine: float
    """Mean cosine of two latents; 1 means all point the same way."""
    first_share: float
    """Share of the variance in the first principal component."""
    effective_rank: float
    """exp of the entropy of the components' shares; at most the width."""
    size: float
    """Root mean square of a latent over that of a token slot's input."""


class Changes(NamedTuple):
    """What becomes of the loss when something about the thoughts is changed, on the same samples."""

    loss: float
    """Nats per token with the change."""
    cost: Mean
    """The change of the loss, a mean over samples of which each is compared with itself."""

    @property
    def tells(self) -> bool:
        """Whether the change is more than chance: its 95 % interval leaves zero out."""
        low, high = self.cost.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Diagnostics:
    """Everything found out about one model on one held-out set; losses in nats per token."""

    length: int
    """Tokens of a sample."""
    looked_at: int
    """Samples whose states were looked at: the first batch; the losses are those of all."""
    loss: Mean
    """The training forward as it is."""
    exact: Changes
    """Exact decoding."""
    fewer: dict[int, Changes]
    """By number of thoughts that are thought."""
    replaced: dict[str, Changes]
    """By what the latents were replaced by."""
    collapse: list[Collapse]
    """Latent slot by latent slot."""
    residual: list[float]
    """||h - h_exact|| / ||h_exact|| of the predicting slot, mean over rows, by position."""
    attention: list[float]
    """Attention mass on latent slots, mean over heads, rows and positions, by layer."""
    first_layer: int
    """The layer of the first of these: where the span begins that latents run through."""
    latent_share: float
    """Share of latent slots among what is seen: the attention's mass if it did not care."""

    @property
    def samples(self) -> int:
        """Samples that the losses were measured on."""
        return self.loss.items

    @property
    def figures(self) -> Figures:
        """The numbers that fit a table."""
        changes = {"exact": self.exact}
        changes |= {f"with_{count}_thoughts": change for count, change in self.fewer.items()}
        changes |= {f"latents_{name}": change for name, change in self.replaced.items()}
        values, errors = {"loss": self.loss.value}, {"loss": self.loss.error}
        for name, change in changes.items():
            values |= {f"loss_{name}": change.loss, f"cost_{name}": change.cost.value}
            errors[f"cost_{name}"] = change.cost.error
        for collapse in self.collapse:
            values[f"cosine_slot_{collapse.slot}"] = collapse.cosine
            values[f"effective_rank_slot_{collapse.slot}"] = collapse.effective_rank
        if self.attention:
            values["attention_on_latents"] = sum(self.attention) / len(self.attention)
        known = {name: error for name, error in errors.items() if error is not None}
        return Figures(values, known, self.samples)


NOTHING = 1e-6
"""Nats below which a change is rounding."""


def verdict(found: Diagnostics) -> str:
    """Whether the thoughts are used, in sentences with the figures behind them."""
    if not found.fewer:
        return "There are no thoughts."
    sentences = []
    if "mean" in found.replaced:
        sentences.append(
            _judged("Replacing the thoughts by their mean", found.replaced["mean"], found.samples)
        )
    return " ".join([*sentences, _spoken("Thinking none of them", found.fewer[0])])


def _judged(what: str, change: Changes, samples: int) -> str:
    """What a replacement costs, and what follows about use."""
    said = _spoken(what, change).removesuffix(".")
    if max(map(abs, change.cost.interval)) < NOTHING:
        return f"{said}: what stands in them is not used."
    if not change.tells:
        number = f"{samples} samples" if samples > 1 else "one sample"
        return f"{said}: {number} cannot tell whether they are used."
    return f"{said}: they are used{'' if change.cost.value > 0 else ', to no good'}."


def _spoken(what: str, change: Changes) -> str:
    """`what` costs, saves or does so much."""
    if max(map(abs, change.cost.interval)) < NOTHING:
        return f"{what} changes nothing."
    if not change.tells:
        return f"{what} changes the loss by {change.cost:+} nats a token, which may be chance."
    verb = "costs" if change.cost.value > 0 else "saves"
    return f"{what} {verb} {change.cost._replace(value=abs(change.cost.value))} nats a token."


@torch.no_grad()
def diagnose(
    model: LanguageModel,
    source: str | Path,
    length: int,
    batch_size: int,
    samples: int,
    mask_documents: bool = False,
) -> Diagnostics:
    """Find out all of it on samples of `length` tokens, evenly spread over a shard folder.

    Replacing a latent by another document's takes it from the next row, so batches of one row are left out there.
    `mask_documents` keeps the documents in a sample apart.
    """
    dataset = TokenDataset(source, length)
    batches = list(validation_batches(dataset, batch_size, samples))
    return diagnose_batches(model, batches, dataset.eod_id if mask_documents else None)


@torch.no_grad()
def diagnose_batches(
    model: LanguageModel, batches: Sequence[Tensor], end_token: int | None = None
) -> Diagnostics:
    """`diagnose` on batches int64 [b, L + 1]; an `end_token` keeps the documents that it divides apart."""
    thoughts, carries = model.method.slots - 1, model.method.looks_back
    inputs = batches[0][:, :-1].to(next(model.parameters()).device)
    seen = _Seen(model, inputs, end_token)
    share = sum(model.method.visibility.sees(thoughts, slot) for slot in range(1, thoughts + 1))
    slots_seen = sum(model.method.visibility.sees(thoughts, slot) for slot in range(thoughts + 1))
    losses = _Losses(model, batches, end_token)
    fewer = {
        count: losses.changed(schedule=model.method.schedule(slots=count + 1)) for count in range(thoughts)
    }
    return Diagnostics(
        length=inputs.shape[1],
        looked_at=len(inputs),
        loss=ratio_of(losses.plain.tolist(), losses.counts.tolist()),
        exact=losses.changed(exact=True),
        fewer=fewer,
        replaced=_replaced(losses, batches, carries) if thoughts or carries else {},
        collapse=[collapse_of(slot, latents, seen.tokens) for slot, latents in sorted(seen.latents.items())],
        residual=_residual(model, inputs, end_token),
        attention=seen.attention() if thoughts else [],
        first_layer=model.method.span[0],
        latent_share=share / slots_seen,
    )


# ---------------------------------------------------------------------------------------------- losses


class _Losses:
    """Losses of every sample, as the model is and changed."""

    def __init__(self, model: LanguageModel, batches: Sequence[Tensor], end_token: int | None) -> None:
        self.model, self.batches, self.end_token = model, batches, end_token
        self.plain, self.counts = self._measured(batches)

    def _measured(self, batches: Iterable[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
        """Nats and number of targets of every sample, float64 on the CPU."""
        found = [sample_sums(self.model, batch, end_token=self.end_token, **options) for batch in batches]
        nats, tokens = (
            torch.cat(parts).cpu() for parts in ([s.nats for s in found], [s.tokens for s in found])
        )
        return nats, tokens

    def changed(self, least_rows: int = 1, **options: Any) -> Changes:
        """What options of the forward do to the loss, in the batches that have so many rows."""
        kept = [len(batch) >= least_rows for batch in self.batches]
        nats, counts = self._measured(itertools.compress(self.batches, kept), **options)
        rows = torch.tensor(kept).repeat_interleave(torch.tensor([len(batch) for batch in self.batches]))
        cost = ratio_of((nats - self.plain[rows]).tolist(), counts.tolist())
        return Changes(float(nats.sum() / counts.sum()), cost)


class Changed(Watch):
    """Every latent and every carried state that goes in, [B, L, n, d], is what `change` makes of it."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def carried(self, step: Step, column: Column, before: Before) -> Before:
        """Where anything is carried."""
        if before.known is False:
            return before
        return before._replace(states=self.change(before.states) * before.known)

    def inject(self, step: Step, slots: range, u: Tensor) -> Tensor:
        """Latent slots alone, and those not by what they add to a token, which `carried` has changed."""
        fed = next(f for column, f in zip(step.columns, step.fed, strict=True) if column.slot == slots[0])
        return self.change(u) if slots[0] and not (fed and fed.feed.back) else u


class NothingCarried(Watch):
    """Every token is thought as if it were the first."""

    def carried(self, step: Step, column: Column, before: Before) -> Before:
        """Nothing."""
        return Before(before.inputs, torch.zeros_like(before.states), known=False)


def _replaced(losses: _Losses, batches: Sequence[Tensor], carries: bool) -> dict[str, Changes]:
    generator = stream(0, "noise")

    def noise(latents: Tensor) -> Tensor:
        drawn = torch.randn(latents.shape, generator=generator).to(latents)
        return drawn * (latents.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))

    def mean(latents: Tensor) -> Tensor:
        return latents.mean(dim=(0, 1), keepdim=True).expand_as(latents)

    found = {"mean": losses.changed(watch=Changed(mean))}
    if max(map(len, batches)) > 1:
        other = Changed(lambda latents: latents.roll(1, dims=0))
        found["of_another_document"] = losses.changed(least_rows=2, watch=other)
    found["noise"] = losses.changed(watch=Changed(noise))
    return found | ({"nothing": losses.changed(watch=NothingCarried())} if carries else {})


def _residual(model: LanguageModel, ids: Tensor, end_token: int | None) -> list[float]:
    exact = prediction(model, ids, exact=True, end_token=end_token).hidden
    difference = (prediction(model, ids, end_token=end_token).hidden - exact).norm(dim=-1) / exact.norm(
        dim=-1
    )
    return difference.mean(dim=0).tolist()


# ---------------------------------------------------------------------------------------------- states


class _Seen(Watch):
    """Runs the training forward and keeps what its last sweep reads, asks and shows."""

    def __init__(self, model: LanguageModel, ids: Tensor, end_token: int | None) -> None:
        self.model, self.first = model, 0
        self.latents: dict[int, Tensor] = {}
        """Latent slot -> its inputs [B, L, d]."""
        self._queries: dict[tuple[int, int], Tensor] = {}  # (layer, slot) -> [B, L, H, D]
        self._keys: dict[tuple[int, int], Tensor] = {}
        self._shape = ids.shape
        self.documents = None if end_token is None else document_ids(ids, end_token)
        self.tokens = model.tokens(ids, documents=self.documents).embeds[:, :, 0]
        """Inputs of the token slots [B, L, d]."""
        model.think(ids, watch=self, documents=self.documents)

    def begin(self, stretch: Stretch, first: int) -> None:
        """Positions count from here."""
        self.first, self._end = first, first + stretch.length

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """Note what latent slots read."""
        inside = step.layers[0] < self.model.method.span[1]
        for index, column in enumerate(step.columns):
            if column.slot and inside:
                self._note(self.latents, column.slot, column, u[:, :, index])

    def attended(self, step: Step, layer: int, q: Tensor, k: Tensor) -> None:
        """Note keys of all slots, and queries of the last slot where it is read."""
        for index, column in enumerate(step.columns):
            self._note(self._keys, (layer, column.slot), column, k[:, :, index])
        if step.columns[-1].slot == self.model.method.slots - 1 and q.shape[2]:
            self._note(self._queries, (layer, step.columns[-1].slot), step.columns[-1], q[:, :, -1])

    def _note(self, board: dict[Any, Tensor], key: Any, column: Column, values: Tensor) -> None:
        if key not in board:
            board[key] = values.new_zeros(*self._shape, *values.shape[2:])
        board[key][:, self.first + column.first : self._end : column.every] = values

    def attention(self) -> list[float]:
        """Attention of the last slot on latent slots, layer by layer."""
        slots, sees = self.model.method.slots, self.model.method.visibility.sees
        past = torch.ones(self._shape[1], self._shape[1], dtype=torch.bool, device=self.tokens.device).tril()
        if self.documents is not None:
            past = past & (self.documents[:, :, None] == self.documents[:, None, :])[:, None]
        masses = []
        for layer in range(*self.model.method.span):
            seen = [s for s in range(slots) if sees(slots - 1, s) and (layer, s) in self._keys]
            q = self._queries[layer, slots - 1]
            k = torch.stack([self._keys[layer, slot] for slot in seen], dim=2)
            k = k.repeat_interleave(q.shape[2] // k.shape[3], dim=3)
            scores = torch.einsum("bthd,bushd->bhtus", q.float(), k.float()) * q.shape[-1] ** -0.5
            p = scores.masked_fill(~past[..., None], float("-inf")).flatten(-2).softmax(dim=-1)
            latent = torch.tensor([slot > 0 for slot in seen], device=p.device)
            masses.append(p.unflatten(-1, (-1, len(seen)))[..., latent].sum(dim=(-2, -1)).mean().item())
        return masses


def collapse_of(slot: int, latents: Tensor, tokens: Tensor) -> Collapse:
    """How alike the latents [B, L, d] of a slot are, and how large beside the inputs of token slots [.., d]."""
    z = latents.flatten(0, 1).double()
    unit = torch.nn.functional.normalize(z, dim=-1)
    count = len(unit)
    # sum over pairs of u_i u_j = |sum u|^2 - count, the diagonal left out
    cosine = (unit.sum(0).square().sum() - count) / (count * max(count - 1, 1))
    shares = torch.linalg.svdvals(z - z.mean(0)).square()
    shares = shares / shares.sum().clamp(min=torch.finfo(shares.dtype).tiny)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    size = z.square().mean().sqrt() / tokens.double().square().mean().sqrt()
    return Collapse(slot, cosine.item(), shares[0].item(), entropy.exp().item(), size.item())
