# Copyright the latentpt authors. Apache License, Version 2.0.
"""A language model that thinks before every token, for transformers 4.57 and later. This file needs nothing else.

Every position t has S = N + 1 slots: the token's, and N latent ones that are filled from the slot before them.

    u(t, 0) = scale * W_e[x_t]                     u(t, s) = fill(h(t, s - 1))
    h(t, s) = trunk(u(t, s)), attending to the slots it sees
    p(x_{t+1}) = softmax(W_o h(t, N))

`forward` and `generate` compute this recurrence exactly: where a slot sees later slots of earlier positions, one
position is done after another, otherwise all positions together, one slot after another.

The cache has one transformers cache layer for every (layer, slot), at index layer * S + slot, so that its length is a
number of positions, as transformers expects.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

Angles = tuple[Tensor, Tensor] | None

FEEDBACK = ("latent", "latent_mixture", "loop", "ponder", "ponder_hidden")
"""Methods whose latent slots depend on the state before them."""


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

    def __init__(
        self,
        vocab_size: int = 50304,
        hidden_size: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        num_kv_heads: int = 8,
        head_size: int = 64,
        intermediate_size: int = 2048,
        max_positions: int = 2048,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        activation: str = "gelu",
        bias: bool = True,
        parallel_residual: bool = True,
        positions: str = "rotary",
        rotary_size: int = 16,
        rope_theta: float = 10000.0,
        shared_head: bool = False,
        method: str = "latent",
        num_thoughts: int = 1,
        visibility: str = "causal",
        embed_scale: float = 1.0,
        pause_token: int = 0,
        top_k_mixture: int | None = None,
        cumulative: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_size = head_size
        self.intermediate_size = intermediate_size
        self.max_positions = max_positions
        self.norm = norm
        self.norm_eps = norm_eps
        self.activation = activation
        self.bias = bias
        self.parallel_residual = parallel_residual
        self.positions = positions
        self.rotary_size = rotary_size
        self.rope_theta = rope_theta
        self.shared_head = shared_head
        self.method = method
        self.num_thoughts = num_thoughts
        self.visibility = visibility
        self.embed_scale = embed_scale
        self.pause_token = pause_token
        self.top_k_mixture = top_k_mixture
        self.cumulative = cumulative
        self.initializer_range = (2 / (5 * hidden_size)) ** 0.5
        kwargs["tie_word_embeddings"] = False  # with a shared head there is only one matrix, see logits
        super().__init__(**kwargs)

    @property
    def slots(self) -> int:
        """Slots per position."""
        return self.num_thoughts + 1

    def sees(self, slot: int, other: int) -> bool:
        """Whether slot `slot` of a position sees slot `other` of earlier ones."""
        if self.visibility == "same_slot":
            return other == slot
        return self.visibility == "causal" or other <= slot

    @property
    def position_by_position(self) -> bool:
        """Whether a position must be finished before the next one can begin."""
        later = self.slots > 1 and self.sees(0, self.slots - 1)
        return later and self.method in FEEDBACK


def make_norm(config: LatentptConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the width."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first r values of x [B, L, n, H, D] by the angles [B, L, r / 2] of their positions."""
    half = cos.shape[-1]
    cos, sin = (part.to(x.dtype)[:, :, None, None] for part in (cos, sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class QKV(nn.Module):
    """All queries, then all keys, then all values, from one weight."""

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.parts = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.width = config.head_size
        self.weight = nn.Parameter(torch.empty(sum(self.parts) * self.width, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(sum(self.parts) * self.width)) if config.bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [.., d] -> queries, keys, values [.., heads, D]."""
        heads = F.linear(x, self.weight, self.bias).unflatten(-1, (-1, self.width))
        return heads.split(self.parts, dim=-2)


class Attention(nn.Module):
    def __init__(self, config: LatentptConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = QKV(config)
        self.out = nn.Linear(config.num_heads * config.head_size, config.hidden_size, bias=config.bias)

    def forward(
        self, x: Tensor, first: int, angles: Angles, padding: Tensor | None, cache: DynamicCache
    ) -> Tensor:
        """x [B, L, n, d] are the slots first .. first + n - 1 of L positions, which follow those in the cache."""
        q, k, v = self.qkv(x)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        slots = self.config.slots
        mine = range(first, first + x.shape[2])
        fresh = {}
        for n, slot in enumerate(mine):
            own = (part[:, :, n].transpose(1, 2) for part in (k, v))
            fresh[slot] = cache.update(*own, self.layer * slots + slot)
        seen = fresh[first][0].shape[2] - x.shape[1]  # positions before these
        out = []
        for n, slot in enumerate(mine):
            masks, keys, values = [], [], []
            for other in range(slots):
                kv = fresh.get(other) or self.cached(cache, other)
                if kv is not None and self.config.sees(slot, other):
                    masks.append(self.mask(slot, other, kv[0], x.shape[1], seen, padding))
                    keys.append(kv[0])
                    values.append(kv[1])
            attended = F.scaled_dot_product_attention(
                q[:, :, n].transpose(1, 2),
                torch.cat(keys, dim=2),
                torch.cat(values, dim=2),
                attn_mask=torch.cat(masks, dim=-1),
                enable_gqa=True,
            )
            out.append(attended.transpose(1, 2).flatten(2))
        return self.out(torch.stack(out, dim=2))

    def cached(self, cache: DynamicCache, slot: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a slot at earlier positions, or None."""
        index = self.layer * self.config.slots + slot
        if index >= len(cache.layers) or cache.layers[index].keys is None:
            return None
        return cache.layers[index].keys, cache.layers[index].values

    def mask(
        self, slot: int, other: int, keys: Tensor, length: int, seen: int, padding: Tensor | None
    ) -> Tensor:
        """What the queries of slot `slot` see of the keys of slot `other`: bool [B or 1, 1, length, keys]."""
        queries = torch.arange(seen, seen + length, device=keys.device)[:, None]
        columns = torch.arange(keys.shape[2], device=keys.device)[None]
        visible = (columns <= queries if other <= slot else columns < queries)[None, None]
        if padding is not None:
            visible = visible & padding[:, None, None, : keys.shape[2]]
            if other == slot:  # a padded cell sees itself: a softmax over nothing would not be a number
                visible = visible | (columns == queries)
        return visible


class MLP(nn.Module):
    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width = config.intermediate_size * (2 if self.activation == "swiglu" else 1)
        self.up = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        h = self.up(x)
        if self.activation == "swiglu":
            gate, value = h.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        return self.down(F.gelu(h, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class Block(nn.Module):
    def __init__(self, config: LatentptConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, *where: Any) -> Tensor:
        """x [B, L, n, d] -> the same; `where` as for Attention."""
        attended = x + self.attention(self.attention_norm(x), *where)
        return attended + self.mlp(self.mlp_norm(x if self.parallel else attended))


class Decoder(nn.Module):
    """Parameters under the names that latentpt gives them."""

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = None
        if not config.shared_head:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., d] -> [.., V]."""
        return F.linear(hidden, (self.head or self.embedding).weight)


class Thoughts(nn.Module):
    """What fills the latent slots."""

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.config = config
        count = config.num_thoughts if config.method == "sequential_hidden_decoding" else 0
        self.tables = nn.ModuleList(nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(count))

    def given(self, decoder: Decoder, slot: int, ids: Tensor) -> Tensor:
        """Unscaled input [B, L, d] of a latent slot that depends on the ids alone."""
        if self.config.method == "pause":
            return decoder.embedding(torch.full_like(ids, self.config.pause_token))
        return self.tables[slot - 1](ids)

    def fed_back(self, decoder: Decoder, embeds: Tensor, rows: Tensor, inputs: Tensor, x: Tensor) -> Tensor:
        """Input [B, L, d] of a latent slot from the slot before it, which read `inputs` and came to x, before the norm.

        embeds are the inputs of the token slots, rows the learned positions (or 0), both scaled.
        """
        method, scale = self.config.method, self.config.embed_scale
        if method == "loop":
            return x
        state = decoder.norm(x)
        if method == "latent":
            return state + rows
        if method == "latent_mixture":
            return self.mixture(decoder, state) * scale + rows
        if method == "ponder":
            return (inputs if self.config.cumulative else embeds) + self.mixture(decoder, state) * scale
        if method == "ponder_hidden":
            return inputs + state
        raise ValueError(f"method {method} is unknown")

    def mixture(self, decoder: Decoder, hidden: Tensor) -> Tensor:
        """The expected embedding under the model's own next-token distribution."""
        logits, k = decoder.logits(hidden), self.config.top_k_mixture
        if k is not None and k < logits.shape[-1]:
            largest = logits.topk(k, dim=-1)
            logits = torch.full_like(logits, float("-inf")).scatter(-1, largest.indices, largest.values)
        return logits.softmax(dim=-1) @ decoder.embedding.weight


class LatentptForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder and its thoughts."""

    config_class = LatentptConfig
    base_model_prefix = "decoder"
    _supports_sdpa = True

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config)
        self.method = Thoughts(config)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it would have one layer for every block; ours has one for every block and slot

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
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits [B, L, V] after ids [B, L], which follow the positions in past_key_values.

        attention_mask [B, positions so far + L] is 0 where a position is padding, on either side.
        """
        cache = DynamicCache() if past_key_values is None else past_key_values
        length = input_ids.shape[1]
        seen = cache.get_seq_length()
        padding = None
        if attention_mask is not None and not bool(attention_mask.all()):
            padding = attention_mask.bool()
        if position_ids is None:
            position_ids = torch.arange(seen, seen + length, device=input_ids.device)[None]
            if padding is not None:
                position_ids = (padding.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        position_ids = position_ids.expand(input_ids.shape[0], -1)
        step = 1 if self.config.position_by_position else length
        pieces = [
            self.think(input_ids[:, t : t + step], position_ids[:, t : t + step], padding, cache)
            for t in range(0, length, step)
        ]
        hidden = self.decoder.norm(torch.cat(pieces, dim=1))
        loss = None
        if labels is not None:
            shifted = self.decoder.logits(hidden[:, :-1]).float().flatten(0, 1)
            loss = F.cross_entropy(shifted, labels[:, 1:].flatten())
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.decoder.logits(hidden[:, kept])
        if return_dict is False:
            return (logits, cache) if loss is None else (loss, logits, cache)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=None if use_cache is False else cache
        )

    def think(self, ids: Tensor, positions: Tensor, padding: Tensor | None, cache: DynamicCache) -> Tensor:
        """The residual stream [B, L, d] after the last slot of ids [B, L]."""
        config, where = self.config, (positions, padding, cache)
        embeds = self.decoder.embedding(ids) * config.embed_scale
        rows = embeds.new_zeros(())
        if self.decoder.position_embedding is not None:
            rows = self.decoder.position_embedding(positions) * config.embed_scale
            embeds = embeds + rows
        if config.method not in FEEDBACK:  # all slots are known beforehand
            latents = (self.method.given(self.decoder, slot, ids) for slot in range(1, config.slots))
            inputs = [embeds, *(latent * config.embed_scale + rows for latent in latents)]
            return self.trunk(torch.stack(inputs, dim=2), 0, *where)[:, :, -1]
        u = embeds
        x = self.trunk(u[:, :, None], 0, *where)[:, :, 0]
        for slot in range(1, config.slots):
            u = self.method.fed_back(self.decoder, embeds, rows, u, x)
            x = self.trunk(u[:, :, None], slot, *where)[:, :, 0]
        return x

    def trunk(
        self, u: Tensor, first: int, positions: Tensor, padding: Tensor | None, cache: DynamicCache
    ) -> Tensor:
        """The blocks over slots first .. first + n - 1, u [B, L, n, d]."""
        angles = None
        if self.config.positions == "rotary":
            size = self.config.rotary_size
            exponents = torch.arange(0, size, 2, device=u.device, dtype=torch.float32) / size
            turns = positions.to(torch.float32)[..., None] * self.config.rope_theta**-exponents
            angles = turns.cos(), turns.sin()
        for block in self.decoder.blocks:
            u = block(u, first, angles, padding, cache)
        return u
