"""The decoder: one trunk for all families. It knows nothing of thoughts beyond cells that lie in slots.

Shapes: B rows, L positions, S slots per position, R slots that are read, d width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from latentpt_kernels.decode import ACTIVATIONS, Layer, decode_layer
from latentpt_kernels.decode import Norm as NormOf
from torch import Tensor, nn

from latentpt.modeling.attention import QKV, Attention, Injection, View, Watch
from latentpt.modeling.config import ModelConfig, Recompute
from latentpt.modeling.linear import Linear
from latentpt.modeling.loss import IGNORE, nats_of_rows, soft_cap
from latentpt.modeling.norms import after, both, make_norm
from latentpt.modeling.recompute import recompute
from latentpt.modeling.rotary import Rotary, rotary
from latentpt.seeding import stream


class Ran(NamedTuple):
    """What a run of layers over a set of cells leaves."""

    x: Tensor
    """The stream after the last layer, of the slots that are read, [B, L, R, d]."""
    keys_values: list[tuple[Tensor, Tensor]]
    """Layer by layer the set's keys and values [B, H_kv, L*S, D], if they were asked for."""
    tapped: Tensor | None
    """The stream before the layer that was tapped, [B, L, S, d]."""


class MLP(nn.Module):
    """d -> ff -> d with GELU, or with a gate, W_down(silu(W_gate x) * W_up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation, self.gated = config.activation, config.gated
        width = config.mlp_size * (2 if self.gated else 1)
        self.up = Linear(config.hidden_size, width, bias=config.bias)
        if self.gated:
            self.up.stacked = (config.mlp_size, config.mlp_size)
        self.down = Linear(config.mlp_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        h = self.up(x)
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            return self.down(self.bend(gate) * value)
        return self.down(self.bend(h))

    def bend(self, h: Tensor) -> Tensor:
        """The non-linearity."""
        if self.activation == "swiglu":
            return F.silu(h)
        return F.gelu(h, approximate="none" if self.activation == "gelu" else "tanh")


KNOWN_PARTS = {"attention_norm", "attention", "mlp_norm", "mlp", "qkv", "out"}
"""Of a block and its attention: what `latentpt_kernels.decode_layer` computes."""


class Block(nn.Module):
    """One layer: attention and MLP, side by side (GPT-NeoX) or one after the other, normalised before, after or both."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        pre, post = config.norm_place != "post", config.norm_place != "pre"
        self.attention_norm = make_norm(config) if pre else nn.Identity()
        self.attention = Attention(config, backend)
        self.attention_post_norm = make_norm(config) if post else nn.Identity()
        self.mlp_norm = make_norm(config) if pre else nn.Identity()
        self.mlp = MLP(config)
        self.mlp_post_norm = make_norm(config) if post else nn.Identity()

    def forward(
        self,
        x: Tensor,
        angles: Rotary | None,
        view: View,
        read: slice | None = None,
        injection: Injection | None = None,
        memory: Tensor | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, L, S, d] -> [B, L, R, d] and the keys and values of all S slots."""
        cell = view.cell
        if (
            cell is not None
            and view.cache is not None
            and read is None
            and injection is None
            and watch is None
        ):
            layer = self.layer()
            if layer is not None:
                cos, sin = (None, None) if angles is None else [part.flatten(0, -2) for part in angles]
                return decode_layer(x[:, 0, 0], layer, *view.cache, cell, cos, sin)[:, None, None], view.cache
        if injection is not None:
            x = injection.residual(x, memory)
        if self.parallel and read is None:
            normed, for_mlp = both(x, self.attention_norm, self.mlp_norm)
            attended, kv = self.attention(normed, angles, view, None, injection, memory, watch)
            return x + self.attention_post_norm(attended) + self.mlp_post_norm(self.mlp(for_mlp)), kv
        attended, kv = self.attention(self.attention_norm(x), angles, view, read, injection, memory, watch)
        attended = self.attention_post_norm(attended)
        if read is not None:
            x = x[:, :, read]
        if self.parallel:
            return x + attended + self.mlp_post_norm(self.mlp(self.mlp_norm(x))), kv
        normed, x = after(self.mlp_norm, x, attended)
        return x + self.mlp_post_norm(self.mlp(normed)), kv

    def layer(self) -> Layer | None:
        """The weights as the kernels that decode read them; None if the block is more than these know, as under LoRA."""
        parts = {**dict(self.named_children()), **dict(self.attention.named_children())}
        here = {name for name, part in parts.items() if not isinstance(part, nn.Identity)}
        matrices = [self.attention.qkv, self.attention.out, self.mlp.up, self.mlp.down]
        plain = [type(matrix) for matrix in matrices] == [QKV, Linear, Linear, Linear]
        if here != KNOWN_PARTS or not plain or self.mlp.activation not in ACTIVATIONS:
            return None
        norms = [NormOf(n.scale, n.bias, n.eps or 0.0, n.kind) for n in (self.attention_norm, self.mlp_norm)]
        qkv, out, up, down = ((matrix.weight, matrix.bias) for matrix in matrices)
        return Layer(norms[0], *qkv, *out, norms[1], *up, *down, self.mlp.activation, self.parallel)


class Head(Linear):
    """Unembedding W_o [V, d] without bias; gives logits or, never holding them all, the loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.cap = config.logit_softcap

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits [.., V] by the matrix that is handed in, which mixtures gather by themselves."""
        return soft_cap(self.multiply(hidden, weight), self.cap)

    def forward(self, hidden: Tensor, targets: Tensor | None = None, by_row: bool = False) -> Any:
        """Logits [.., V], or with targets the summed cross-entropy in nats, `by_row` also that of every row [M], detached."""
        if targets is None:
            return self.logits(hidden, self.weight)
        nats = nats_of_rows(hidden.flatten(0, -2), self.weight, targets.flatten(), IGNORE, cap=self.cap)
        return nats if by_row else nats[0]


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head. `run` is the one way through the blocks, and thoughts/execute.py calls it."""

    def __init__(
        self, config: ModelConfig, backend: str = "sdpa", checkpoint_activations: Recompute = "none"
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations: Recompute = checkpoint_activations
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config, backend) for _ in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = Head(config)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def angles(self, positions: Tensor) -> Rotary | None:
        """Rotary angles of int positions [L] or [B, L]; None for learned positions."""
        if self.config.positions == "learned":
            return None
        return rotary(positions, self.config)

    def run(
        self,
        x: Tensor,
        angles: Rotary | None,
        views: Sequence[View],
        first: int = 0,
        read: slice | None = None,
        keep: bool = False,
        tap: int | None = None,
        injections: nn.ModuleList | None = None,
        memory: Tensor | None = None,
        watch: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Ran:
        """Run layers `first`, `first` + 1, .. over a set of cells, one for every view.

        x [B, L, S, d] is the stream that enters; a view says what the cells see in its layer; `read` names the slots
        whose result somebody reads: the last layer computes queries, output and MLP for these alone. `keep` asks for
        keys and values, `tap` for the stream before a layer. `injections` are every layer's, fed with `memory`
        [B, L, S, d]; `watch(layer, q, k)` looks on.
        """
        inputs = (x, angles, views, first, read, keep, tap, injections, memory, watch)
        if self.checkpoint_activations == "pass" and torch.is_grad_enabled():
            return recompute(self._run, *inputs)
        return self._run(*inputs)

    def _run(
        self,
        x: Tensor,
        angles: Rotary | None,
        views: Sequence[View],
        first: int,
        read: slice | None,
        keep: bool,
        tap: int | None,
        injections: nn.ModuleList | None,
        memory: Tensor | None,
        watch: Callable[[int, Tensor, Tensor], None] | None,
    ) -> Ran:
        again = self.checkpoint_activations in ("block", "selective") and torch.is_grad_enabled()
        kept: list[tuple[Tensor, Tensor]] = []
        tapped = None
        for layer, view in enumerate(views, start=first):
            if layer == tap:
                tapped = x
            wanted = read if layer == first + len(views) - 1 else None
            injection = None if injections is None else injections[layer]
            look = None if watch is None else functools.partial(watch, layer)
            inputs = (x, angles, view, wanted, injection, memory, look)
            if again:
                selective = self.checkpoint_activations == "selective"
                x, kv = recompute(self.blocks[layer], *inputs, selective=selective)
            else:
                x, kv = self.blocks[layer](*inputs)
            if keep:
                kept.append(kv)
        return Ran(x, kept, x if tap == first + len(views) else tapped)


@torch.no_grad()
def initialize(
    named: Mapping[str, nn.Parameter], seed: int, std: float, residual_std: float, norm: float = 1.0
) -> None:
    """Truncated normal, cut at 3 std, for every matrix; norms `norm` and 0, biases 0.

    Attention-out and MLP-down, which write to the residual stream, take `residual_std`. A parameter's values depend on
    the seed and its name alone.
    """
    for name, parameter in named.items():
        if parameter.dim() < 2:
            parameter.fill_(norm if name.endswith("norm.weight") else 0.0)
            continue
        spread = residual_std if name.endswith(("attention.out.weight", "mlp.down.weight")) else std
        values = torch.empty(parameter.shape, dtype=torch.float32)
        nn.init.trunc_normal_(values, std=spread, a=-3 * spread, b=3 * spread, generator=stream(seed, name))
        parameter.copy_(values)
