# Copyright the latentpt authors. Apache License, Version 2.0.
"""The decoder of modeling_latentpt.py: its configuration, what cells see, blocks, embedding and head.

Shapes: B rows, L positions, n slots that run together, d width, V vocabulary.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

Angles = tuple[Tensor, Tensor] | None

LORA_TARGETS = ["qkv", "out", "up", "down"]
"""Linear layers that peft adapts where nobody names others."""


class LatentptConfig(PretrainedConfig):
    """Architecture of the decoder and the way it thinks; see the fields' names in latentpt's documentation."""

    model_type = "latentpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "max_position_embeddings": "max_positions",
    }

    ARCHITECTURE: ClassVar[dict[str, Any]] = {
        "vocab_size": 50304, "hidden_size": 512, "num_layers": 6, "num_heads": 8, "num_kv_heads": 8,
        "head_size": 64, "intermediate_size": 2048, "max_positions": 2048, "norm": "layer", "norm_eps": 1e-5,
        "norm_place": "pre", "norm_offset": 0.0, "qk_norm": "none", "activation": "gelu", "bias": True,
        "qkv_bias": True, "out_bias": True, "parallel_residual": True, "positions": "rotary",
        "rotary_frequencies": None, "rotary_factor": 1.0, "rotary_limit": None, "logit_softcap": None,
        "shared_head": False, "embed_scale": 1.0, "visibility": "causal", "span": [0, 6], "feeds": [None, [0, 0]],
        "reads": ["token", "state"], "hands_on": "norm", "order": [[0], [1]], "text_order": None, "sweeps": None,
        "pause_token": None, "top_k_mixture": None, "shift": "add", "fusion": "gate", "match_scale": False,
        "layer_memory": None, "router": None, "threshold": 0.0, "thought_price": 0.0, "correctness": 0.0,
    }  # fmt: skip
    """Fields and their defaults; latentpt's documentation says what they mean."""

    def __init__(self, **kwargs: Any) -> None:
        for name, default in self.ARCHITECTURE.items():
            setattr(self, name, kwargs.pop(name, default))
        self.initializer_range = (2 / (5 * self.hidden_size)) ** 0.5
        kwargs["tie_word_embeddings"] = False  # with a shared head there is only one matrix, see logits
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As usual; peft asks for it before it looks for default targets, so that is when it is told ours."""
        known = sys.modules.get("peft.utils.constants")
        if known is not None:
            known.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(self.model_type, LORA_TARGETS)
        return super().to_dict()

    @property
    def slots(self) -> int:
        """Slots per position."""
        return len(self.feeds)

    def grid(self, layer: int) -> range:
        """The slots that have keys and values in a layer."""
        if layer < self.span[0]:
            return range(1)
        return range(self.slots) if layer < self.span[1] else range(self.slots - 1, self.slots)

    def cell(self, layer: int, slot: int) -> int:
        """The cache layer of a slot's keys and values."""
        return sum(len(self.grid(below)) for below in range(layer)) + slot - self.grid(layer)[0]

    def state_cell(self, slot: int | None) -> int:
        """The cache layer of what a slot (None: the token's own stream) hands on to later positions."""
        return sum(len(self.grid(layer)) for layer in range(self.num_layers)) + self.carriers.index(slot)

    def weight_cell(self, slot: int) -> int:
        """The cache layer of the weights of a slot's keys."""
        cells = sum(len(self.grid(layer)) for layer in range(self.num_layers))
        return cells + len(self.carriers) + slot

    def sees(self, slot: int, other: int) -> bool:
        """Whether slot `slot` of a position sees slot `other` of earlier ones."""
        if self.visibility == "same_slot":
            return other == slot
        return self.visibility == "causal" or other <= slot

    @property
    def position_by_position(self) -> bool:
        """Whether a position must be finished before the next one can begin."""
        return self.text_order is None

    @property
    def carriers(self) -> list[int | None]:
        """The slots that hand something on to the next position; None: the token's own stream."""
        return list(dict.fromkeys(feed[1] for feed in self.feeds if feed is not None and feed[0]))


class RMSNorm(nn.Module):
    """x / rms(x) (w + offset) over the last dimension."""

    def __init__(self, width: int, config: LatentptConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.offset = config.norm_eps, config.norm_offset

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] -> [.., width]."""
        weight = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(x, weight.shape, weight, self.eps)


def make_norm(config: LatentptConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the width of the stream."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    return RMSNorm(config.hidden_size, config)


def make_head_norm(config: LatentptConfig, heads: int) -> RMSNorm | None:
    """The norm of queries or keys, of each head or of all together, or None."""
    if config.qk_norm == "none":
        return None
    return RMSNorm(config.head_size * (1 if config.qk_norm == "head" else heads), config)


def normalize_heads(x: Tensor, norm: RMSNorm | None) -> Tensor:
    """x [.., H, D] under the norm that `make_head_norm` gave."""
    if norm is None:
        return x
    whole = norm.weight.shape[0] != x.shape[-1]
    return norm(x.flatten(-2)).unflatten(-1, x.shape[-2:]) if whole else norm(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first r values of x [B, L, n, H, D] by the angles [B, L, r / 2] of their positions."""
    half = cos.shape[-1]
    cos, sin = (part.to(x.dtype)[:, :, None, None] for part in (cos, sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class Sight(NamedTuple):
    """Where some positions stand, and what they may look at."""

    seen: int
    """Positions before these."""
    positions: Tensor
    """Of their documents, int64 [B, L]."""
    angles: Angles
    """Cosines and sines [B, L, r / 2]; None without rotary positions."""
    real: Tensor | None
    """Which columns so far are no padding, bool [B, seen + L or more]; None: all of them."""
    ranks: Tensor | None
    """How many real columns lie before a column, int64 [B or 1, seen + L or more], where a text holds several documents."""
    rows: Tensor | None = None
    """Rows of the cache that are run, int64 [b]; None: all."""
    batch: int = 0
    """How many rows the cache has then."""

    def at(self, part: slice) -> Sight:
        """Some of the positions, one after the other."""
        angles = None if self.angles is None else (self.angles[0][:, part], self.angles[1][:, part])
        return self._replace(seen=self.seen + part.start, positions=self.positions[:, part], angles=angles)

    def of(self, rows: Tensor) -> Sight:
        """Some of the rows."""
        angles = None if self.angles is None else (self.angles[0][rows], self.angles[1][rows])
        real = None if self.real is None else self.real[rows]
        ranks = self.ranks if self.ranks is None or len(self.ranks) == 1 else self.ranks[rows]
        return Sight(self.seen, self.positions[rows], angles, real, ranks, rows, len(self.positions))

    def follows(self) -> Tensor:
        """Whether something may be carried into a position: not where a text or a document begins, bool [B, L, 1]."""
        known = self.positions > 0
        if self.real is not None:
            before = F.pad(self.real, (1, 0))[:, self.seen : self.seen + known.shape[1]]
            known = known & before
        if not self.seen:
            known = torch.cat([torch.zeros_like(known[:, :1]), known[:, 1:]], dim=1)
        return known[..., None]

    def mask(self, keys: int, itself: bool, own: bool) -> Tensor:
        """What these positions see of the first `keys` positions of a slot: bool [B or 1, 1, L, keys].

        `itself`: also their own; `own`: the slot is the one that looks, and a cell always sees itself.
        """
        length = self.positions.shape[1]
        queries = torch.arange(self.seen, self.seen + length, device=self.positions.device)[:, None]
        columns = torch.arange(keys, device=queries.device)[None]
        visible = (columns <= queries if itself else columns < queries)[None, None]
        if self.real is not None:
            visible = visible & self.real[:, None, None, :keys]
        if (
            self.ranks is not None
        ):  # a document begins where as many columns lie before as lie before its first token
            begin = self.ranks[:, self.seen : self.seen + length] - self.positions
            visible = visible & (self.ranks[:, None, None, :keys] >= begin[:, None, :, None])
        if own:  # a softmax over nothing would not be a number
            visible = visible | (columns == queries)
        return visible


class Cells:
    """Keys and values of a run over all positions. What a run leaves is no part of what it sees, so a run that is
    repeated in the backward pass (gradient checkpointing) sees the same."""

    def __init__(self, seen: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.seen = seen or {}
        self.left: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Those of one (layer, slot), [B, H_kv, L, D]."""
        self.left[index] = keys, values
        return keys, values

    def after(self) -> Cells:
        """What the next run sees: the latest of every slot."""
        return Cells({**self.seen, **self.left})


def earlier(cache: DynamicCache | Cells, index: int) -> tuple[Tensor, Tensor] | None:
    """What an earlier run left in a layer of the cache, or None."""
    if isinstance(cache, Cells):
        return cache.seen.get(index)
    if index >= len(cache.layers) or cache.layers[index].keys is None:
        return None
    return cache.layers[index].keys, cache.layers[index].values


def leave(cache: DynamicCache | Cells, index: int, states: Tensor) -> Tensor:
    """Add states [B, L, d] to a layer of the cache: all of them so far."""
    states = states[:, None]
    return cache.update(states, states[..., :0], index)[0][:, 0]


class Injection(nn.Module):
    """What goes into one layer itself: x + rate * m, and gated keys and values g k + g' A m, g v + g' B m."""

    CHANNELS = 32

    def __init__(self, config: LatentptConfig, project: bool) -> None:
        super().__init__()
        heads, d = config.num_kv_heads, config.hidden_size
        self.channels = min(self.CHANNELS, d)
        self.rate = nn.Parameter(torch.ones(1))
        self.project = nn.Linear(d, 2 * heads * config.head_size, bias=False) if project else None
        self.gate = nn.Linear(self.channels, 2 * heads, bias=False)

    def keys_values(self, x: Tensor, k: Tensor, v: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """k and v [B, L, n, H_kv, D] under the gates that x asks for, plus `more` [B, L, n, 2 H_kv D], what m brings."""
        gates = 2 * torch.sigmoid(self.gate(x[..., : self.channels]))
        local, fed = gates.unsqueeze(-1).chunk(2, dim=-2)
        k, v = local * k, local * v
        if more is None:
            return k, v
        more_k, more_v = more.unflatten(-1, (-1, k.shape[-1])).chunk(2, dim=-2)
        return k + fed * more_k, v + fed * more_v


Memory = tuple[Injection, Tensor | None, Tensor | None] | None
"""A layer's injection, and the states m [B, L, n, d] that are fed and their keys and values."""


class Attention(nn.Module):
    def __init__(self, config: LatentptConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.qkv = nn.Linear(config.hidden_size, sum(self.heads) * config.head_size, bias=config.qkv_bias)
        self.q_norm = make_head_norm(config, config.num_heads)
        self.k_norm = make_head_norm(config, config.num_kv_heads)
        self.out = nn.Linear(config.num_heads * config.head_size, config.hidden_size, bias=config.out_bias)

    def forward(
        self,
        x: Tensor,
        first: int,
        sight: Sight,
        cache: DynamicCache | Cells,
        memory: Memory,
        bias: dict[int, Tensor],
    ) -> Tensor:
        """x [B, L, n, d] are the slots first .. first + n - 1 of L positions; `bias` [B, positions] is added to the
        attention logits of a slot's keys."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.config.head_size)).split(self.heads, dim=-2)
        if memory is not None:
            k, v = memory[0].keys_values(x, k, v, memory[2])
        q, k = normalize_heads(q, self.q_norm), normalize_heads(k, self.k_norm)
        if sight.angles is not None:
            q, k = rotate(q, *sight.angles), rotate(k, *sight.angles)
        mine = range(first, first + x.shape[2])
        fresh = {}
        for n, slot in enumerate(mine):
            own_k, own_v = (self.of_all(part[:, :, n].transpose(1, 2), sight) for part in (k, v))
            fresh[slot] = cache.update(own_k, own_v, self.config.cell(self.layer, slot))
        out = []
        for n, slot in enumerate(mine):
            masks, keys, values, added = [], [], [], []
            for other in self.config.grid(self.layer):
                kv = fresh.get(other) or earlier(cache, self.config.cell(self.layer, other))
                if kv is not None and self.config.sees(slot, other):
                    if sight.rows is not None:
                        kv = kv[0][sight.rows], kv[1][sight.rows]
                    masks.append(sight.mask(kv[0].shape[2], other <= slot, other == slot))
                    keys.append(kv[0])
                    values.append(kv[1])
                    added.append(bias.get(other, kv[0].new_zeros(1, kv[0].shape[2])))
            mask = torch.cat(masks, dim=-1)
            if bias:
                rows = max(len(part) for part in added)
                logits = torch.cat([part.expand(rows, -1) for part in added], dim=-1)[:, None, None]
                mask = logits.to(q.dtype).masked_fill(~mask, float("-inf"))
            attended = F.scaled_dot_product_attention(
                q[:, :, n].transpose(1, 2),
                torch.cat(keys, dim=2),
                torch.cat(values, dim=2),
                attn_mask=mask,
                enable_gqa=True,
            )
            out.append(attended.transpose(1, 2).flatten(2))
        return self.out(torch.stack(out, dim=2))

    def of_all(self, x: Tensor, sight: Sight) -> Tensor:
        """Keys or values of the rows that run, and zeros, which nobody sees, of the others."""
        if sight.rows is None:
            return x
        return x.new_zeros(sight.batch, *x.shape[1:]).index_copy(0, sight.rows, x)


class MLP(nn.Module):
    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gated = config.activation in ("swiglu", "geglu")
        width = config.intermediate_size * (2 if self.gated else 1)
        self.up = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        if not self.gated:
            return self.down(self.bend(self.up(x)))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(self.bend(gate) * value)

    def bend(self, h: Tensor) -> Tensor:
        """The non-linearity."""
        if self.activation == "swiglu":
            return F.silu(h)
        return F.gelu(h, approximate="none" if self.activation == "gelu" else "tanh")


class Block(GradientCheckpointingLayer):
    def __init__(self, config: LatentptConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        before, after = config.norm_place != "post", config.norm_place != "pre"
        self.attention_norm = make_norm(config) if before else nn.Identity()
        self.attention = Attention(config, layer)
        self.attention_post_norm = make_norm(config) if after else nn.Identity()
        self.mlp_norm = make_norm(config) if before else nn.Identity()
        self.mlp = MLP(config)
        self.mlp_post_norm = make_norm(config) if after else nn.Identity()

    def forward(
        self,
        x: Tensor,
        first: int,
        sight: Sight,
        cache: DynamicCache | Cells,
        memory: Memory,
        bias: dict[int, Tensor],
    ) -> Tensor:
        """x [B, L, n, d] -> the same; all else as for Attention."""
        if memory is not None and memory[1] is not None:
            x = x + memory[0].rate * memory[1]
        where = first, sight, cache, memory, bias
        attended = x + self.attention_post_norm(self.attention(self.attention_norm(x), *where))
        return attended + self.mlp_post_norm(self.mlp(self.mlp_norm(x if self.parallel else attended)))


class Decoder(nn.Module):
    """Parameters under the names that latentpt gives them."""

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)
        self.cap = config.logit_softcap
        self.head = None
        if not config.shared_head:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., d] -> [.., V]."""
        logits = F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap
