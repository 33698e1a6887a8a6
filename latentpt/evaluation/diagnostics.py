"""Are the thoughts used? What the loss becomes without them, and what they look like.

fewer         loss when only the first k thoughts are thought
replaced      loss when every latent is its mean, another document's, or noise of the same size
collapse      are the latents all alike: cosine of pairs, share of the first component, effective rank, size
residual      how far the training forward is from exact decoding, position by position
attention     share of the predicting slot's attention that goes to latent slots, layer by layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.evaluation.perplexity import summed_loss
from latentpt.evaluation.scoring import hidden_states
from latentpt.modeling.rotary import rotate
from latentpt.seeding import stream
from latentpt.thoughts.model import LanguageModel


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


@dataclass(frozen=True)
class Diagnostics:
    """Everything found out about one model on one held-out set; losses in nats per token."""

    loss: float
    """The training forward as it is."""
    exact_loss: float
    """Exact decoding."""
    fewer: dict[int, float]
    """Thoughts -> loss."""
    replaced: dict[str, float]
    """What the latents were replaced by -> loss."""
    collapse: list[Collapse]
    """Latent slot by latent slot."""
    residual: list[float]
    """||h - h_exact|| / ||h_exact|| of the predicting slot, mean over rows, by position."""
    attention: list[float]
    """Attention mass on latent slots, mean over heads, rows and positions, by layer."""
    latent_share: float
    """Share of latent slots among what is seen: the attention's mass if it did not care."""

    def summary(self) -> dict[str, float]:
        """The figures that fit a table."""
        values = {"loss": self.loss, "exact_loss": self.exact_loss}
        values |= {f"loss_with_{count}_thoughts": loss for count, loss in self.fewer.items()}
        values |= {f"loss_latents_{name}": loss for name, loss in self.replaced.items()}
        for collapse in self.collapse:
            values[f"cosine_slot_{collapse.slot}"] = collapse.cosine
            values[f"effective_rank_slot_{collapse.slot}"] = collapse.effective_rank
        if self.attention:
            values["attention_on_latents"] = sum(self.attention) / len(self.attention)
        return values


@torch.no_grad()
def diagnose(
    model: LanguageModel, source: str | Path, length: int, batch_size: int, samples: int
) -> Diagnostics:
    """Find out all of it on the first samples of `length` tokens of a shard folder.

    Replacing a latent by another document's takes it from the next row, so batches of one row are left out there.
    """
    batches = list(validation_batches(TokenDataset(source, length), batch_size, samples))
    return diagnose_batches(model, batches)


@torch.no_grad()
def diagnose_batches(model: LanguageModel, batches: Sequence[Tensor]) -> Diagnostics:
    """`diagnose` on batches int64 [b, L + 1]."""
    thoughts = model.method.slots - 1
    inputs = batches[0][:, :-1].to(next(model.parameters()).device)
    seen = _watch(model, inputs)
    share = sum(model.method.visibility.sees(thoughts, slot) for slot in range(1, thoughts + 1))
    slots_seen = sum(model.method.visibility.sees(thoughts, slot) for slot in range(thoughts + 1))
    return Diagnostics(
        loss=_loss(model, batches),
        exact_loss=_loss(model, batches, exact=True),
        fewer={count: _loss_with(model, batches, count) for count in range(thoughts)},
        replaced=_replaced(model, batches) if thoughts else {},
        collapse=[_collapse(slot, latents, seen.tokens) for slot, latents in sorted(seen.latents.items())],
        residual=_residual(model, inputs),
        attention=seen.attention,
        latent_share=share / slots_seen,
    )


# ---------------------------------------------------------------------------------------------- losses


def _loss(model: LanguageModel, batches: Sequence[Tensor], exact: bool = False) -> float:
    total, count = summed_loss(model, batches, exact)
    return total / max(count, 1)


def _loss_with(model: LanguageModel, batches: Sequence[Tensor], thoughts: int) -> float:
    """Loss when slot `thoughts` predicts and later ones do not exist."""
    schedule = model.method.schedule(slots=thoughts + 1)
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in batches:
        targets = batch[:, 1:].to(device)
        hidden, _ = model.think(batch[:, :-1].to(device), schedule)
        total += model.decoder.head(hidden, targets).item()
        count += targets.numel()
    return total / max(count, 1)


Change = Callable[[Tensor], Tensor]


@contextmanager
def latents_changed(model: LanguageModel, change: Change) -> Iterator[None]:
    """Inside, every latent that is shifted in, [B, L, n, d], is what `change` makes of it."""
    original = model.method.latents

    def changed(*arguments: Any) -> Tensor:
        return change(original(*arguments))

    model.method.latents = changed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del model.method.latents


def _replaced(model: LanguageModel, batches: Sequence[Tensor]) -> dict[str, float]:
    generator = stream(0, "noise")

    def noise(latents: Tensor) -> Tensor:
        drawn = torch.randn(latents.shape, generator=generator).to(latents)
        return drawn * (latents.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))

    changes: dict[str, Change] = {
        "mean": lambda latents: latents.mean(dim=(0, 1), keepdim=True).expand_as(latents),
        "of_another_document": lambda latents: latents.roll(1, dims=0),
        "noise": noise,
    }
    losses = {}
    for name, change in changes.items():
        wanted = [b for b in batches if len(b) > 1] if name == "of_another_document" else batches
        if wanted:
            with latents_changed(model, change):
                losses[name] = _loss(model, wanted)
    return losses


# ---------------------------------------------------------------------------------------------- states


class _Seen(NamedTuple):
    latents: dict[int, Tensor]
    """Latent slot -> its inputs in the last sweep, [B, L, d]."""
    tokens: Tensor
    """Inputs of the token slots [B, L, d]."""
    attention: list[float]


def _watch(model: LanguageModel, ids: Tensor) -> _Seen:
    """Run the training forward and look at the latents and the attention of its last sweep."""
    method = model.method
    latents: dict[int, Tensor] = {}
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.decoder.blocks]
    original = method.latents

    def watched(decoder: Any, tokens: Any, slots: range, *rest: Any) -> Tensor:
        found = original(decoder, tokens, slots, *rest)
        latents.update({slot: found[:, :, index] for index, slot in enumerate(slots)})
        return found

    def note(layer: int) -> Callable[[Any, Any, tuple[Tensor, Tensor, Tensor]], None]:
        return lambda module, arguments, found: calls[layer].append(found[:2])

    hooks = [
        block.get_submodule("attention.qkv").register_forward_hook(note(layer))
        for layer, block in enumerate(model.decoder.blocks)
    ]
    method.latents = watched  # type: ignore[method-assign, assignment]
    try:
        model.think(ids)
    finally:
        del method.latents
        for hook in hooks:
            hook.remove()
    tokens = method.tokens(model.decoder, ids, torch.arange(ids.shape[1], device=ids.device))
    attention = [] if method.slots == 1 else [_latent_mass(model, layer) for layer in calls]
    return _Seen(latents, tokens.embeds[:, :, 0], attention)


def _latent_mass(model: LanguageModel, calls: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Attention of the last slot on latent slots in one layer, from its calls' (q [B, L, R, H, D], k [B, L, S, H_kv, D])."""
    slots = model.method.slots
    q, k = calls[-1][0][:, :, -1:], calls[-1][1]
    if k.shape[2] < slots:  # slot by slot: the last S calls are the last sweep
        k = torch.cat([keys for _, keys in calls[-slots:]], dim=2)
    length = q.shape[1]
    angles = model.decoder.angles(torch.arange(length, device=q.device))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    k = k.repeat_interleave(q.shape[3] // k.shape[3], dim=3)
    scores = torch.einsum("bthd,bushd->bhtus", q[:, :, 0].float(), k.float()) * q.shape[-1] ** -0.5
    seen = torch.tensor(
        [model.method.visibility.sees(slots - 1, slot) for slot in range(slots)], device=q.device
    )
    past = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~(past[:, :, None] & seen), float("-inf"))
    p = scores.flatten(-2).softmax(dim=-1).unflatten(-1, (length, slots))
    return p[..., 1:].sum(dim=(-2, -1)).mean().item()


def _collapse(slot: int, latents: Tensor, tokens: Tensor) -> Collapse:
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


def _residual(model: LanguageModel, ids: Tensor) -> list[float]:
    exact = hidden_states(model, ids, "exact")
    difference = (hidden_states(model, ids, "training") - exact).norm(dim=-1) / exact.norm(dim=-1)
    return difference.mean(dim=0).tolist()
