# Copyright the latentpt authors. Apache License, Version 2.0.
"""A language model that thinks before every token, for transformers 4.57 and later. It needs nothing else but
the two files beside this one.

Every position t has S slots. A slot reads something made of its token and of the state that it is fed, sees what was
thought before it, and the last slot predicts, or all do together:

    u(t, s) = reads[s](token, state of the cell feeds[s])
    h(t, s) = layers(u(t, s) and the slots it sees)
    p(x_{t+1}) = softmax(W_o norm(h(t, S - 1)))

The configuration holds this recurrence as data:

    span         layers that slots run through; those before run on the token alone, those after on the last slot
    feeds        slot by slot [positions back, slot] of the cell that it is fed by; slot null: the token's own stream
    reads        slot by slot how its input is made, see `modeling_thoughts.Thoughts.read`
    hands_on     what of a stream is fed to others: itself, its norm, or a running sum over positions
    order        slots that run together, group after group, for one position
    text_order   the same for many positions at once; null where a position must be finished before the next begins
    sweeps       how training does all positions together: [order, gradient, weight of its loss] of every sweep

In evaluation `forward` and `generate` compute the recurrence exactly. In training (`model.train()`) all positions are done
together, by the sweeps that latentpt trains with: the states of one sweep are fed to the next.

The cache has a transformers cache layer for the keys and values of every (layer, slot), one for every slot whose states go
into later positions, and one for every slot whose keys carry a weight: its length is a number of positions, as transformers
expects. Where position_ids begin again at 0 a document begins, into which nothing is carried and which sees no other.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .modeling_decoder import Angles, Cells, Decoder, LatentptConfig, Sight
from .modeling_thoughts import Thoughts, Walk


class LatentptForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder and its thoughts."""

    config_class = LatentptConfig
    base_model_prefix = "decoder"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config)
        self.method = Thoughts(config)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it would have one layer for every block; ours has one for every block and slot

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute blocks in the backward pass; never in the reentrant way, which knows no gradient of the keys seen."""
        super().gradient_checkpointing_enable(
            {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        )

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """As usual; assisted decoding wants a cache from the start, where others make theirs in the first step."""
        if options.get("assistant_model") is not None and options.get("past_key_values") is None:
            options["past_key_values"] = DynamicCache()
        return super().generate(*inputs, **options)

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is the token table."""
        return self.decoder.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.decoder.head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits [B, L, V] after ids [B, L], which follow the positions in past_key_values.

        attention_mask [B, positions so far + L] is 0 where a position is padding, on either side. inputs_embeds [B, L, d]
        are rows of the token table, before its scale. Hidden states are those of the slot that predicts: what it reads,
        what every block makes of it, the last of them after the final norm. The loss is a mean over labels, or their sum
        over num_items_in_batch.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embeds = self.decoder.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        parallel = self.training and past_key_values is None and self.config.sweeps is not None
        cache: Any = DynamicCache() if past_key_values is None else past_key_values
        length, seen = embeds.shape[1], cache.get_seq_length()
        limit = self.config.rotary_limit
        if limit is not None and seen + length > limit:
            raise ValueError(
                f"{seen + length} positions exceed {limit}, beyond which dynamic rope scaling turns all keys"
            )
        sight = self.sight(embeds, attention_mask, position_ids, seen)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        traces: list[Any]
        if parallel:
            traces = [[] if output_hidden_states else None]
            readings = self.think_in_parallel(input_ids, embeds, sight, traces[0])
        else:
            step = 1 if self.config.position_by_position else length
            traces, pieces = [], []
            for t in range(0, length, step):
                part = slice(t, t + step)
                traces.append([] if output_hidden_states else None)
                ids = None if input_ids is None else input_ids[:, part]
                pieces.append(self.think(ids, embeds[:, part], sight.at(part), cache, traces[-1]))
            readings = [(torch.cat(pieces, dim=1), None, 1.0)]
        hidden = readings[-1][0]
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.decoder.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            counted = labels[:, 1:] != -100
            items = counted.sum() if num_items_in_batch is None else num_items_in_batch
            all_kept = isinstance(logits_to_keep, int) and logits.shape[1] == length
            whole = logits if all_kept else self.decoder.logits(hidden)
            loss = self.nats(whole, readings[-1][1], labels, counted) * readings[-1][2] / items
            for state, shares, weight in readings[:-1]:
                loss = loss + self.nats(self.decoder.logits(state), shares, labels, counted) * weight / items
        cache = None if use_cache is False or parallel else cache
        states = None
        if output_hidden_states:
            states = (*(torch.cat(same, dim=1) for same in list(zip(*traces, strict=True))[:-1]), hidden)
        if return_dict is False:
            return tuple(value for value in (loss, logits, cache, states) if value is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=states)

    def nats(self, logits: Tensor, shares: Tensor | None, labels: Tensor, counted: Tensor) -> Tensor:
        """Nats, summed over labels, and the price of the thoughts where there is one."""
        shifted = logits[:, :-1].float().flatten(0, 1)
        each = F.cross_entropy(shifted, labels[:, 1:].flatten(), reduction="none")
        if shares is None or self.method.halting is None:
            return each.sum()
        return each.sum() + self.method.halting.penalty(shares[:, :-1], each.view_as(counted), counted)

    def sight(
        self, embeds: Tensor, attention_mask: Tensor | None, positions: Tensor | None, seen: int
    ) -> Sight:
        """Where positions stand that follow `seen` others, and what they may look at."""
        length, real, ranks = embeds.shape[1], None, None
        if attention_mask is not None and not bool(attention_mask.all()):
            real = attention_mask.bool()
        columns = torch.arange(seen + length, device=embeds.device)[None]
        before = columns if real is None else real.long().cumsum(-1) - 1
        if positions is None:
            positions = before.clamp(min=0)[:, -length:]
        elif bool((before[:, -length:] > positions).any()):
            ranks = before
        positions = positions.expand(len(embeds), -1)
        angles: Angles = None
        if self.config.rotary_frequencies is not None:
            frequencies = torch.tensor(
                self.config.rotary_frequencies, device=embeds.device, dtype=torch.float32
            )
            turns = positions.to(torch.float32)[..., None] * frequencies
            angles = turns.cos() * self.config.rotary_factor, turns.sin() * self.config.rotary_factor
        return Sight(seen, positions, angles, real, ranks)

    def think(
        self,
        ids: Tensor | None,
        embeds: Tensor,
        sight: Sight,
        cache: DynamicCache | Cells,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The states [B, L, d] that predict, of positions that follow the cache; `trace` gets their hidden states."""
        walk = Walk(self.decoder, self.method, ids, embeds, sight, cache, trace)
        alone = embeds.shape[1] == 1 or self.config.text_order is None
        walk.go(self.config.order if alone else self.config.text_order)
        hidden = walk.hidden()[0]
        walk.leave()
        return hidden

    def think_in_parallel(
        self, ids: Tensor | None, embeds: Tensor, sight: Sight, trace: list[Tensor] | None
    ) -> list[tuple[Tensor, Tensor | None, float]]:
        """The same by the sweeps of training: states, what left at each slot and weight in the loss, sweep by sweep.

        Noise, plain prefixes, chunks and strides over positions are not followed here.
        """
        sweeps = self.config.sweeps
        with nullcontext() if any(grad for _, grad, _ in sweeps) else torch.no_grad():
            walk = Walk(self.decoder, self.method, ids, embeds, sight, Cells(), trace)
        readings = []
        for number, (order, grad, weight) in enumerate(sweeps):
            with nullcontext() if grad else torch.no_grad():
                walk.go(order)
                if weight or number == len(sweeps) - 1:
                    readings.append((*walk.hidden(), weight))
        return readings
