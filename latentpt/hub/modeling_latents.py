# Copyright the latentpt authors. Apache License, Version 2.0.
"""A language model that reasons in latents in the sequence, for transformers 4.57 and later.

Beside this file lie modeling_latentpt.py and its two, the model that thinks inside every position. Here a position whose id is the
latent token does not read that token's embedding but a vector made of the position before it:

    hidden   z = h_I      soft   z = e_pred      fusion   z = alpha A(h_I) + (1 - alpha) e_pred      pause   the embedding

`forward` and `generate` compute this exactly, with the states of the latest positions kept beside the cache.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .modeling_decoder import LatentptConfig, Sight
from .modeling_latentpt import LatentptForCausalLM


class LatentReasonerConfig(LatentptConfig):
    """The model's architecture, and how latents in the sequence are filled."""

    model_type = "latentpt_reasoner"

    def __init__(
        self,
        fill: str = "hidden",
        latent_token: int = -1,
        fill_block: int | None = None,
        alpha: float = 0.6,
        fill_top_p: float = 0.8,
        fill_temperature: float = 1.0,
        inclusive: bool = True,
        adapter_size: int = 0,
        switch: str = "never",
        switch_tau: float = 0.5,
        switch_most: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.fill = fill
        self.latent_token = latent_token
        self.fill_block = fill_block
        self.alpha = alpha
        self.fill_top_p = fill_top_p
        self.fill_temperature = fill_temperature
        self.inclusive = inclusive
        self.adapter_size = adapter_size
        self.switch = switch
        self.switch_tau = switch_tau
        self.switch_most = switch_most
        super().__init__(**kwargs)


class Adapter(nn.Module):
    """W_up GELU(W_down h)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        return self.up(F.gelu(self.down(h)))


class LatentReasonerForCausalLM(LatentptForCausalLM):
    """The decoder, its thoughts, and latents in the sequence."""

    config_class = LatentReasonerConfig
    supports_gradient_checkpointing = False  # it fills its cache as it goes, in training too

    def __init__(self, config: LatentReasonerConfig) -> None:
        super().__init__(config)
        self.adapter = Adapter(config.hidden_size, config.adapter_size) if config.adapter_size else None
        self._layered: Tensor | None = None
        if config.fill_block is not None:
            self.decoder.blocks[config.fill_block].register_forward_hook(self._note)
        self.post_init()

    def _note(self, module: nn.Module, arguments: Any, found: Tensor) -> None:
        self._layered = found[:, :, -1]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As LatentptForCausalLM.forward, with latents filled and, for generation, decided about."""
        out = super().forward(
            input_ids, attention_mask, position_ids,
            DynamicCache() if past_key_values is None else past_key_values,
            inputs_embeds, labels, logits_to_keep=logits_to_keep, **kwargs,
        )  # fmt: skip
        if labels is None and out.past_key_values is not None:
            out.logits[:, -1] = self.decide(out.logits[:, -1], out.past_key_values.latents_in_a_row)
        return out

    def think(
        self,
        ids: Tensor | None,
        embeds: Tensor,
        sight: Sight,
        cache: DynamicCache,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The states [B, L, d] that predict; the columns that hold latents begin stretches of their own."""
        if ids is None:
            ids = torch.full(embeds.shape[:2], -2, device=embeds.device)  # nothing is known to be a latent
        latent = ids == self.config.latent_token
        cuts = [0, *(latent.any(dim=0).nonzero()[:, 0].tolist()), ids.shape[1]]
        pieces, traces = [], []
        for start, end in itertools.pairwise(cuts):
            if start < end:
                part = slice(start, end)
                own: list[Tensor] | None = None if trace is None else []
                pieces.append(self.stretch(ids[:, part], embeds[:, part], sight.at(part), cache, own))
                traces.append(own)
        if trace is not None:
            trace[:] = [torch.cat(same, dim=1) for same in zip(*traces, strict=True)]
        return torch.cat(pieces, dim=1)

    def stretch(
        self,
        ids: Tensor,
        embeds: Tensor,
        sight: Sight,
        cache: DynamicCache,
        trace: list[Tensor] | None,
    ) -> Tensor:
        """Columns of which only the first may hold latents."""
        latent = ids == self.config.latent_token
        before = getattr(cache, "latest", None)
        if before is not None and self.config.fill != "pause" and bool(latent[:, 0].any()):
            z = (self.fill(*before) / self.config.embed_scale).to(embeds.dtype)
            embeds = torch.where(latent[..., None], z[:, None], embeds)
        hidden = super().think(ids, embeds, sight, cache, trace)
        layered = hidden if self._layered is None else self._layered
        here = slice(sight.seen, sight.seen + ids.shape[1])
        real = torch.ones_like(latent) if sight.real is None else sight.real[:, here]
        self.remember(cache, hidden, layered, latent, real)
        return hidden

    def remember(
        self, cache: DynamicCache, hidden: Tensor, layered: Tensor, latent: Tensor, real: Tensor
    ) -> None:
        """Keep each row's states at its last real column, and how many latents have just followed one another."""
        columns = torch.arange(real.shape[1], device=real.device)
        last = torch.where(real, columns, -1).amax(dim=1)
        index = last.clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[-1])
        new = [states.gather(1, index)[:, 0] for states in (hidden, layered)]
        before = getattr(cache, "latest", None)
        if before is not None:
            new = [torch.where((last >= 0)[:, None], now, old) for now, old in zip(new, before, strict=True)]
        cache.latest = tuple(new)
        run = getattr(cache, "latents_in_a_row", torch.zeros_like(last))
        for column in range(real.shape[1]):
            counted = torch.where(latent[:, column], run + 1, 0)
            run = torch.where(real[:, column], counted, run)
        cache.latents_in_a_row = run

    def fill(self, hidden: Tensor, layered: Tensor) -> Tensor:
        """Inputs z [B, d] of latents from the states of the positions before them."""
        config = self.config
        state = layered if self.adapter is None else self.adapter(layered)
        if config.fill == "hidden":
            return state
        mixed = self.predicted(self.decoder.logits(hidden)) * config.embed_scale
        return mixed if config.fill == "soft" else config.alpha * state + (1 - config.alpha) * mixed

    def predicted(self, logits: Tensor) -> Tensor:
        """The expected embedding of the likeliest ids, the latent token left out."""
        config = self.config
        logits = logits.float() / config.fill_temperature
        logits[:, config.latent_token] = float("-inf")
        p = logits.softmax(dim=-1)
        if config.fill_top_p < 1:
            descending, order = p.sort(dim=-1, descending=True, stable=True)
            reached = descending.cumsum(dim=-1)
            beyond = (
                reached - descending >= config.fill_top_p if config.inclusive else reached > config.fill_top_p
            )
            beyond[..., 0] = False
            p = torch.zeros_like(p).scatter(-1, order, descending.masked_fill(beyond, 0.0))
            p = p / p.sum(dim=-1, keepdim=True)
        table = self.decoder.embedding.weight
        return p.to(table.dtype) @ table

    def decide(self, logits: Tensor, run: Tensor) -> Tensor:
        """Next-token logits [B, V] in which the latent token is either the likeliest or out of the question."""
        config, latent = self.config, self.config.latent_token
        if latent < 0:
            return logits
        words = logits.clone()
        words[:, latent] = float("-inf")
        if config.switch == "never":
            return words
        most = 1 if config.switch_most is None and config.switch == "threshold" else config.switch_most
        if config.switch == "argmax":
            wants = logits.argmax(dim=-1) == latent
        else:
            wants = words.float().softmax(dim=-1).amax(dim=-1) < config.switch_tau
        if most is not None:
            wants = wants & (run < most)
        chosen = words.clone()
        chosen[:, latent] = words.amax(dim=-1) + 1
        return torch.where(wants[:, None], chosen, words)
