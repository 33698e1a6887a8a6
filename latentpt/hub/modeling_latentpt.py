# Copyright the latentpt authors. Apache License, Version 2.0.
"""A language model that thinks before every token, for transformers 4.57 and later. This file needs nothing else.

Every position t has S = N + 1 slots: the token's, and N latent ones that are filled from the slot before them.

    u(t, 0) = scale * W_e[x_t]                     u(t, s) = fill(h(t, s - 1))
    h(t, s) = trunk(u(t, s)), attending to the slots it sees
    p(x_{t+1}) = softmax(W_o h(t, N))

In evaluation `forward` and `generate` compute this recurrence exactly: where a slot sees later slots of earlier positions,
one position is done after another, otherwise all positions together, one slot after another. In training (`model.train()`)
all positions are done together, by the sweeps that latentpt trains with: the states of one sweep fill the slots of the next.

The cache has one transformers cache layer for every (layer, slot), at index layer * S + slot, so that its length is a
number of positions, as transformers expects.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

Angles = tuple[Tensor, Tensor] | None

FEEDBACK = ("latent", "latent_mixture", "loop", "ponder", "ponder_hidden")
"""Methods whose latent slots depend on the state before them."""

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
        "shared_head": False, "method": "latent", "num_thoughts": 1, "visibility": "causal",
        "embed_scale": 1.0, "pause_token": None, "top_k_mixture": None, "cumulative": False, "solver": "jacobi",
        "refinements": 3, "bptt_passes": None,
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
    """Keys and values of a (layer, slot) that an earlier run left, or None."""
    if isinstance(cache, Cells):
        return cache.seen.get(index)
    if index >= len(cache.layers) or cache.layers[index].keys is None:
        return None
    return cache.layers[index].keys, cache.layers[index].values


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
        self, x: Tensor, first: int, angles: Angles, padding: Tensor | None, cache: DynamicCache | Cells
    ) -> Tensor:
        """x [B, L, n, d] are the slots first .. first + n - 1 of L positions, which follow those in the cache."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.config.head_size)).split(self.heads, dim=-2)
        q, k = normalize_heads(q, self.q_norm), normalize_heads(k, self.k_norm)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        slots = self.config.slots
        mine = range(first, first + x.shape[2])
        fresh = {}
        for n, slot in enumerate(mine):
            own_k, own_v = (part[:, :, n].transpose(1, 2) for part in (k, v))
            fresh[slot] = cache.update(own_k, own_v, self.layer * slots + slot)
        seen = fresh[first][0].shape[2] - x.shape[1]  # positions before these
        out = []
        for n, slot in enumerate(mine):
            masks, keys, values = [], [], []
            for other in range(slots):
                kv = fresh.get(other) or earlier(cache, self.layer * slots + other)
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

    def forward(self, x: Tensor, *where: Any) -> Tensor:
        """x [B, L, n, d] -> the same; `where` as for Attention."""
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


class Thoughts(nn.Module):
    """What fills the latent slots."""

    def __init__(self, config: LatentptConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.vocab_size, config.hidden_size)
        if config.method == "sequential_hidden_decoding":
            self.tables = nn.ModuleList(nn.Embedding(*shape) for _ in range(config.num_thoughts))
        if config.method == "pause" and config.pause_token is None:
            self.row = nn.Embedding(1, config.hidden_size)

    def given(self, decoder: Decoder, slot: int, ids: Tensor | None, embeds: Tensor) -> Tensor:
        """Unscaled input [B, L, d] of a latent slot that depends on the ids alone."""
        if self.config.method == "pause":
            row = (
                self.row.weight[0]
                if self.config.pause_token is None
                else decoder.embedding.weight[self.config.pause_token]
            )
            return row.expand_as(embeds)
        if ids is None:
            raise ValueError("a model with a table for every latent slot needs input_ids, not inputs_embeds")
        return self.tables[slot - 1](ids)

    def state(self, decoder: Decoder, x: Tensor) -> Tensor:
        """What of a slot's stream x is fed back."""
        return x if self.config.method == "loop" else decoder.norm(x)

    def fed_back(
        self, decoder: Decoder, embeds: Tensor, rows: Tensor, inputs: Tensor, state: Tensor
    ) -> Tensor:
        """Input [B, L, d] of a latent slot from the slot before it, which read `inputs` and came to `state`.

        embeds are the inputs of the token slots, rows the learned positions (or 0), both scaled.
        """
        method, scale = self.config.method, self.config.embed_scale
        if method == "loop":
            return state
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
        parallel = self.training and past_key_values is None and self.config.solver != "sequential"
        cache: Any = DynamicCache() if past_key_values is None else past_key_values
        rows, length = embeds.shape[:2]
        seen = cache.get_seq_length()
        limit = self.config.rotary_limit
        if limit is not None and seen + length > limit:
            raise ValueError(
                f"{seen + length} positions exceed {limit}, beyond which dynamic rope scaling turns all keys"
            )
        padding = None
        if attention_mask is not None and not bool(attention_mask.all()):
            padding = attention_mask.bool()
        if position_ids is None:
            position_ids = torch.arange(seen, seen + length, device=embeds.device)[None]
            if padding is not None:
                position_ids = (padding.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        position_ids = position_ids.expand(rows, -1)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        traces: list[Any]
        if parallel:
            traces = [[] if output_hidden_states else None]
            x = self.think_in_parallel(input_ids, embeds, position_ids, padding, traces[0])
        else:
            step = 1 if self.config.position_by_position else length
            traces, pieces = [], []
            for t in range(0, length, step):
                part = slice(t, t + step)
                traces.append([] if output_hidden_states else None)
                ids = None if input_ids is None else input_ids[:, part]
                pieces.append(
                    self.think(ids, embeds[:, part], position_ids[:, part], padding, cache, traces[-1])
                )
            x = torch.cat(pieces, dim=1)
        hidden = self.decoder.norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.decoder.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            all_kept = isinstance(logits_to_keep, int) and logits_to_keep == 0
            whole = logits if all_kept else self.decoder.logits(hidden)
            shifted = whole[:, :-1].float().flatten(0, 1)
            loss = F.cross_entropy(
                shifted, labels[:, 1:].flatten(), reduction="mean" if num_items_in_batch is None else "sum"
            )
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        cache = None if use_cache is False or parallel else cache
        states = None
        if output_hidden_states:
            states = (*(torch.cat(same, dim=1) for same in list(zip(*traces, strict=True))[:-1]), hidden)
        if return_dict is False:
            return tuple(value for value in (loss, logits, cache, states) if value is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=states)

    def slot_inputs(self, embeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What token slots read, [B, L, d], and the rows of learned positions (or 0) in it, both scaled."""
        embeds, rows = embeds * self.config.embed_scale, embeds.new_zeros(())
        if self.decoder.position_embedding is not None:
            rows = self.decoder.position_embedding(positions) * self.config.embed_scale
        return embeds + rows, rows

    def think(
        self,
        ids: Tensor | None,
        embeds: Tensor,
        positions: Tensor,
        padding: Tensor | None,
        cache: DynamicCache | Cells,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The residual stream [B, L, d] after the last slot, slot after slot; `trace` gets its hidden states."""
        config = self.config
        embeds, rows = self.slot_inputs(token_rows := embeds, positions)
        if config.method not in FEEDBACK:  # all slots are known beforehand
            latents = (
                self.method.given(self.decoder, slot, ids, token_rows) for slot in range(1, config.slots)
            )
            inputs = [embeds, *(latent * config.embed_scale + rows for latent in latents)]
            return self.trunk(torch.stack(inputs, dim=2), 0, positions, padding, cache, trace)[:, :, -1]
        return self.sweep_by_slot(embeds, rows, positions, padding, cache, trace)[0][:, :, 0]

    def think_in_parallel(
        self,
        ids: Tensor | None,
        embeds: Tensor,
        positions: Tensor,
        padding: Tensor | None,
        trace: list[Tensor] | None,
    ) -> Tensor:
        """The same by the sweeps of training: exact in one sweep, unless a slot sees what is thought after it.

        Then K = refinements further sweeps bring the states nearer to the exact ones: all slots at once, filled from the
        sweep before, after N growing ones (solver jacobi), or slot by slot, each seeing the latest of the others (any other
        solver). Gradient flows through the last bptt_passes sweeps. Chunks and strides are not followed here.
        """
        config = self.config
        if not config.position_by_position:
            return self.think(ids, embeds, positions, padding, Cells(), trace)
        jacobi = config.solver == "jacobi"
        growing = list(range(1, config.slots)) if jacobi else []
        sweeps = [*growing, *[config.slots] * (config.refinements + 1)]
        first = 0 if config.bptt_passes is None else len(sweeps) - config.bptt_passes
        tokens, rows = self.slot_inputs(embeds, positions)
        cells, inputs, x, states = Cells(), [tokens], embeds[:, :, None], embeds[:, :, None]
        for index, slots in enumerate(sweeps):
            with nullcontext() if index >= first else torch.no_grad():
                if not jacobi:
                    x, cells = self.sweep_by_slot(tokens, rows, positions, padding, cells, trace)
                    continue
                before = enumerate(inputs[: slots - 1])
                inputs = [
                    tokens,
                    *(
                        self.method.fed_back(self.decoder, tokens, rows, u, states[:, :, s])
                        for s, u in before
                    ),
                ]
                x = self.trunk(torch.stack(inputs, dim=2), 0, positions, padding, Cells(), trace)
                states = self.method.state(self.decoder, x)  # here: a sweep without gradient leaves none
        return x[:, :, -1]

    def sweep_by_slot(
        self,
        tokens: Tensor,
        rows: Tensor,
        positions: Tensor,
        padding: Tensor | None,
        cache: DynamicCache | Cells,
        trace: list[Tensor] | None,
    ) -> tuple[Tensor, Any]:
        """One slot after another over all positions: the last one's stream [B, L, 1, d] and what the next sweep sees."""
        u, x = tokens, tokens[:, :, None]
        for slot in range(self.config.slots):
            if slot:
                state = self.method.state(self.decoder, x[:, :, 0])
                u = self.method.fed_back(self.decoder, tokens, rows, u, state)
            x = self.trunk(u[:, :, None], slot, positions, padding, cache, trace)
            if isinstance(cache, Cells):
                cache = cache.after()
        return x, cache

    def trunk(
        self,
        u: Tensor,
        first: int,
        positions: Tensor,
        padding: Tensor | None,
        cache: DynamicCache | Cells,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The blocks over slots first .. first + n - 1, u [B, L, n, d]; `trace` is left with the last slot's streams."""
        angles = None
        if self.config.rotary_frequencies is not None:
            frequencies = torch.tensor(self.config.rotary_frequencies, device=u.device, dtype=torch.float32)
            turns = positions.to(torch.float32)[..., None] * frequencies
            angles = tuple(part * self.config.rotary_factor for part in (turns.cos(), turns.sin()))
        streams = [u]
        for block in self.decoder.blocks:
            u = block(u, first, angles, padding, cache)
            streams.append(u)
        if trace is not None:
            trace[:] = [stream[:, :, -1] for stream in streams]
        return u
