# Copyright the latentpt authors. Apache License, Version 2.0.
"""The thoughts of modeling_latentpt.py: what goes into slots and layers, how far a token thinks, and the walk through slots."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .modeling_decoder import Cells, Decoder, Injection, LatentptConfig, Memory, Sight, earlier, leave

HIDDEN = -2000.0
"""Log-weight of cells that nobody sees."""


class Given(NamedTuple):
    """What the slots of some positions are made from."""

    ids: Tensor | None
    embeds: Tensor
    """The token's scaled embedding [B, L, d], learned positions included; in a span of layers the stream that enters it."""
    rows: Tensor
    """Scaled rows of learned positions [B, L, d], which latent slots read too; else 0."""


class Fed(NamedTuple):
    """The cells that a slot is fed by, [B, L, d] each."""

    inputs: Tensor
    states: Tensor
    """Zero where there are none."""
    known: Tensor | None = None
    """Where there are any, bool [B, L, 1]; None: everywhere."""
    records: Tensor | None = None
    """Log-weights of the cell and, as far as they are known, of the slots after it, [B, L, r]."""


def rms(x: Tensor) -> Tensor:
    """x over its root mean square."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


class Shift(nn.Module):
    """x + m, x + norm(m) or x + tanh(g) m."""

    def __init__(self, kind: str, config: LatentptConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.RMSNorm(width, eps=config.norm_eps) if kind == "norm" else None
        self.gate = nn.Parameter(torch.zeros(width)) if kind == "gate" else None

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Two times [B, L, d] -> [B, L, d]."""
        if self.norm is not None:
            memory = self.norm(memory)
        return x + (memory if self.gate is None else self.gate.tanh() * memory)


class Halting(nn.Module):
    """How far a token thinks: W(t, s) is the share of it that comes as far as slot s; below the threshold it stops.

    router reach: W(t, s) = g(t, 0) .. g(t, s - 1), g = sigmoid(w h + b + 2); tail: W(t, s) = p(t, s) + .. + p(t, S - 1),
    p(t) = softmax(A h(t, 0) + b), and log W is added to the attention logits of the cell's keys.
    """

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.weighs, self.threshold = config.router == "tail", config.threshold
        self.price, self.power = config.thought_price, config.correctness
        self.router = nn.Linear(config.hidden_size, config.slots if self.weighs else 1)

    def route(self, states: Tensor) -> Tensor:
        """The router's logits of states [B, L, d], in float32 or wider."""
        wide = torch.promote_types(states.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.to(wide), self.router.weight.to(wide), self.router.bias.to(wide))

    def forward(self, slot: int, fed: Fed | None, like: Tensor) -> Tensor:
        """Records [B, L, r] of a slot whose input is like [B, L, d]."""
        wide = torch.promote_types(like.dtype, torch.float32)
        if not slot or fed is None or fed.records is None:
            return like.new_zeros(*like.shape[:2], self.router.out_features - self.weighs or 1, dtype=wide)
        logits = self.route(fed.states)
        if not self.weighs:
            found = fed.records + F.logsigmoid(logits + 2)
        elif slot == 1:
            tails = logits.flip(-1).logcumsumexp(-1).flip(-1) - logits.logsumexp(-1, keepdim=True)
            found = tails[..., 1:]
        else:
            found = F.pad(fed.records[..., 1:], (0, 1), value=HIDDEN)
        return found.masked_fill(found < math.log(self.threshold), HIDDEN) if self.threshold else found

    def key_weights(self, records: Tensor) -> Tensor | None:
        """What is added to the attention logits of the keys [B, L] of cells; None: nothing ever."""
        log_weights = records[..., 0]
        if self.weighs:
            return log_weights
        return log_weights.where(log_weights <= HIDDEN, 0.0) if self.threshold else None

    def shares(self, records: list[Tensor]) -> Tensor:
        """What of a token leaves at each slot, [B, L, S]."""
        weights = torch.stack([part[..., 0].exp() for part in records], dim=-1)
        return weights - F.pad(weights[..., 1:], (0, 1))

    def penalty(self, shares: Tensor, nats: Tensor, counted: Tensor) -> Tensor:
        """The price of the thoughts of [B, L] tokens, less where the token was not known."""
        reached = shares.flip(-1).cumsum(-1).flip(-1)[..., 1:].sum(-1)
        return self.price * ((-self.power * nats.detach()).exp() * counted * reached).sum()


class Thoughts(nn.Module):
    """What goes into slots, and into the layers themselves."""

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.config = config
        reads, d = config.reads, config.hidden_size
        if "table" in reads:
            self.tables = nn.ModuleList(nn.Embedding(config.vocab_size, d) for _ in reads[1:])
        if "row" in reads and config.pause_token is None:
            self.row = nn.Embedding(1, d)
        if "shift" in reads:
            self.shift = Shift(config.shift, config)
        if "fusion" in reads:
            self.value = nn.Linear(2 * d if config.fusion == "concat" else d, d, bias=False)
            self.gate = nn.Linear(d, d, bias=False) if config.fusion == "gate" else None
        if "blend" in reads:
            self.project = nn.Linear(d, d, bias=False)
            self.state_gate, self.stream_gate = nn.Linear(2 * d, d), nn.Linear(2 * d, d)
            self.state_rate, self.stream_rate = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        self.injections = self.halting = None
        if config.layer_memory is not None:
            own = config.layer_memory == "own"
            layers = range(config.num_layers)
            self.injections = nn.ModuleList(Injection(config, own or layer == 0) for layer in layers)
        if config.router is not None:
            self.halting = Halting(config)

    def read(self, decoder: Decoder, slot: int, given: Given, fed: Fed | None) -> Tensor:
        """The input [B, L, d] of a slot, from what is given and from what it is fed, if anything."""
        config, kind = self.config, self.config.reads[slot]
        scale, embeds, rows = config.embed_scale, given.embeds, given.rows
        if kind == "row":
            table = self.row if config.pause_token is None else decoder.embedding
            return (table.weight[config.pause_token or 0] * scale + rows).expand_as(embeds)
        if kind == "table":
            if given.ids is None:
                raise ValueError(
                    "a model with a table for every latent slot needs input_ids, not inputs_embeds"
                )
            return self.tables[slot - 1](given.ids) * scale + rows
        if kind == "blend":
            return self.blend(embeds, torch.zeros_like(embeds) if fed is None else fed.states)
        if kind == "token" or fed is None:
            return embeds
        if kind == "state":
            return fed.states + rows
        if kind == "stream":
            return fed.states
        if kind == "shift":
            return self.shift(embeds, fed.states)
        if kind == "fusion":
            fused = self.fuse(given, fed.states)
            return fused if fed.known is None else torch.where(fed.known, fused, embeds)
        if kind == "input+state":
            return fed.inputs + fed.states
        mixed = self.mixture(decoder, fed.states) * scale
        return mixed + {"mixture": rows, "token+mixture": embeds, "input+mixture": fed.inputs}[kind]

    def mixture(self, decoder: Decoder, hidden: Tensor) -> Tensor:
        """The expected embedding under the model's own next-token distribution."""
        logits, k = decoder.logits(hidden), self.config.top_k_mixture
        if k is not None and k < logits.shape[-1]:
            largest = logits.topk(k, dim=-1)
            logits = torch.full_like(logits, float("-inf")).scatter(-1, largest.indices, largest.values)
        return logits.softmax(dim=-1) @ decoder.embedding.weight

    def fuse(self, given: Given, states: Tensor) -> Tensor:
        """A state in the place of its token's embedding."""
        e = given.embeds
        if self.config.fusion == "add":
            return e + self.value(states)
        if self.gate is not None:
            mixed = self.value(states) * torch.sigmoid(self.gate(rms(e)))
        else:
            mixed = self.value(torch.cat([rms(states), rms(e)], dim=-1))
        size = e.square().mean(-1, keepdim=True).sqrt() if self.config.match_scale else 1.0
        return rms(mixed) * size + given.rows

    def blend(self, x: Tensor, states: Tensor) -> Tensor:
        """A stream and a gated state."""
        r = self.project(states)
        both = torch.cat([x, r], dim=-1)
        mixed = torch.tanh(self.state_rate) * torch.sigmoid(self.state_gate(both)) * r
        return x + mixed + torch.tanh(self.stream_rate) * torch.sigmoid(self.stream_gate(both)) * x

    def hand_on(self, decoder: Decoder, x: Tensor, fed: Fed | None) -> Tensor:
        """What of a slot's stream x [B, L, d] is fed to others."""
        if self.config.hands_on != "sum":
            return x if self.config.hands_on == "stream" else decoder.norm(x)
        total = x if fed is None else x + fed.states
        scale = total.detach().float().square().mean(-1, keepdim=True).rsqrt().clamp(1 / 5, 5)
        return total * scale.to(total.dtype)

    def memories(self, layers: range, states: Tensor | None) -> list[Memory]:
        """Layer by layer what goes into it."""
        found: list[Memory] = []
        brought = None
        for layer in layers:
            injection = None if self.injections is None else self.injections[layer]
            if not isinstance(injection, Injection):
                found.append(None)
                continue
            if states is not None and (brought is None or self.config.layer_memory == "own"):
                brought = self.projection(layer)(states)
            found.append((injection, states, brought))
        return found

    def projection(self, layer: int) -> nn.Module:
        """What makes keys and values of the states that go into a layer."""
        assert self.injections is not None
        return self.injections[0 if self.config.layer_memory == "shared" else layer].get_submodule("project")


class Walk:
    """Some positions on their way through the slots."""

    def __init__(
        self,
        decoder: Decoder,
        thoughts: Thoughts,
        ids: Tensor | None,
        embeds: Tensor,
        sight: Sight,
        cache: DynamicCache | Cells,
        trace: list[Tensor] | None,
    ) -> None:
        self.decoder, self.thoughts, self.config = decoder, thoughts, thoughts.config
        self.sight, self.cache, self.trace = sight, cache, trace
        config, start = self.config, self.config.span[0]
        embeds, rows = embeds * config.embed_scale, embeds.new_zeros(())
        if self.decoder.position_embedding is not None:
            rows = self.decoder.position_embedding(sight.positions) * config.embed_scale
        embeds = embeds + rows
        if trace is not None:
            trace[:] = [embeds] * (config.num_layers + 1)
        self.given = Given(ids, embeds, rows)
        self.bias: dict[int, Tensor] = {}
        for slot in range(config.slots) if config.router is not None else ():
            weights = earlier(cache, config.weight_cell(slot))
            if weights is not None:
                self.bias[slot] = weights[0][:, 0, :, 0]
        if start:
            embeds = self.run(embeds[:, :, None], 0, (0, start))[:, :, 0]
            self.given = Given(ids, embeds, embeds.new_zeros(()))
        self.before = {source: earlier(cache, config.state_cell(source)) for source in config.carriers}
        self.inputs: dict[int, Tensor] = {}
        self.streams: dict[int, Tensor] = {}
        self.states: dict[int | None, Tensor] = {None: self.given.embeds}
        self.records: dict[int, Tensor] = {}

    def go(self, order: list[list[int]]) -> None:
        """One sweep: the slots of each group together, group after group."""
        for slots in order:
            fed = [self.fed(slot) for slot in slots]
            pairs = list(zip(slots, fed, strict=True))
            u = torch.stack([self.thoughts.read(self.decoder, slot, self.given, f) for slot, f in pairs], 2)
            halting, rows = self.thoughts.halting, None
            if halting is not None:
                for n, (slot, f) in enumerate(pairs):
                    self.records[slot] = halting(slot, f, u[:, :, n])
                    self.weigh(slot, halting.key_weights(self.records[slot]))
                rows = self.going_on(halting, slots)
            memory = None
            if self.thoughts.injections is not None and any(f is not None for f in fed):
                memory = torch.stack([u[:, :, 0] * 0 if f is None else f.states for f in fed], dim=2)
            x = self.run(u, slots[0], tuple(self.config.span), memory, rows)
            for n, (slot, f) in enumerate(pairs):
                self.inputs[slot], self.streams[slot] = u[:, :, n], x[:, :, n]
                self.states[slot] = self.thoughts.hand_on(self.decoder, x[:, :, n], f)

    def fed(self, slot: int) -> Fed | None:
        """What a slot is fed; None: nothing, at any position."""
        feed = self.config.feeds[slot]
        if feed is None:
            return None
        back, source = feed
        if not back:
            return Fed(self.inputs[source], self.states[source], None, self.records.get(source))
        states, before = self.states.get(source), self.before[source]
        length = self.sight.positions.shape[1]
        if (states is None or length == 1) and before is None:
            return None
        shape = self.given.embeds
        first = torch.zeros_like(shape[:, :1]) if before is None else before[0][:, 0, -1:].to(shape.dtype)
        states = first if states is None else torch.cat([first, states[:, :-1]], dim=1)
        known = self.sight.follows()
        states = states.masked_fill(~known, 0.0)
        return Fed(states, states, known)

    def weigh(self, slot: int, log_weights: Tensor | None) -> None:
        """Keep what is added to the attention logits of a slot's keys, after that of the positions before."""
        if log_weights is not None:
            index = self.config.weight_cell(slot)
            self.bias[slot] = leave(self.cache, index, log_weights[..., None])[..., 0]

    def going_on(self, halting: Halting, slots: list[int]) -> Tensor | None:
        """The rows [b] whose token thinks a slot, for a single position; None: all of them, or not asked."""
        if not halting.threshold or len(self.sight.positions[0]) > 1 or isinstance(self.cache, Cells):
            return None
        rows = (self.records[slots[0]][:, 0, 0] > HIDDEN).nonzero()[:, 0]
        return None if len(rows) == len(self.sight.positions) else rows

    def run(
        self,
        u: Tensor,
        first: int,
        layers: tuple[int, int],
        memory: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Some layers over slots first .. first + n - 1, [B, L, n, d] -> the same; zeros in rows that are not run."""
        sight, whole = self.sight, u
        # A copy, for a block that runs again in the backward pass has to see what it saw.
        bias = dict(self.bias) if layers == tuple(self.config.span) else {}
        if rows is not None:
            u, sight = u[rows], sight.of(rows)
            memory = None if memory is None else memory[rows]
            bias = {slot: part[rows] for slot, part in bias.items()}
        blocks = self.decoder.blocks[slice(*layers)]
        memories = self.thoughts.memories(range(*layers), memory)
        for layer, (block, inside) in enumerate(zip(blocks, memories, strict=True), start=layers[0]):
            u = block(u, first, sight, self.cache, inside, bias)
            if self.trace is not None:
                self.trace[layer + 1] = u[:, :, -1]
        if isinstance(self.cache, Cells):
            self.cache = self.cache.after()
        return u if rows is None else torch.zeros_like(whole).index_copy(0, rows, u)

    def hidden(self) -> tuple[Tensor, Tensor | None]:
        """The state [B, L, d] that predicts, after the final norm, and what of a token left at each slot."""
        config, halting, last = self.config, self.thoughts.halting, self.config.slots - 1
        if config.span[1] < config.num_layers:
            x = self.run(self.streams[last][:, :, None], last, (config.span[1], config.num_layers))
            return self.decoder.norm(x[:, :, 0]), None
        if halting is None:
            return self.decoder.norm(self.streams[last]), None
        slots = range(config.slots)
        shares = halting.shares([self.records[slot] for slot in slots])
        states = self.decoder.norm(torch.stack([self.streams[slot] for slot in slots], dim=2))
        return (shares[..., None] * states).sum(2).to(states.dtype), shares

    def leave(self) -> None:
        """Hand on what later positions are fed."""
        for source in self.config.carriers:
            leave(self.cache, self.config.state_cell(source), self.states[source])
