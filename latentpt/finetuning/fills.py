"""What a latent position reads instead of its token's embedding: a function of the position before it.

    hidden   z_j = h_I                               Coconut (arXiv 2412.06769); stage 2 of LT-Tuning with layer I
    soft     z_j = e_pred                            the expected embedding of the prediction
    fusion   z_j = alpha A(h_I) + (1 - alpha) e_pred  stage 3 of LT-Tuning (arXiv 2602.10229), A the adapter or identity
    pause    z_j = v                                 a learned vector, the same everywhere: the control

with h_I the state of layer I at j - 1 and e_pred made of the logits at j - 1, see `predicted_embedding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentpt.config import ConfigError, nearest
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder

Kind = Literal["hidden", "soft", "fusion", "pause"]
ROWS = 256
"""Latents whose probabilities over the vocabulary are held at a time."""


@dataclass(frozen=True)
class Fill:
    """How latent positions are filled."""

    kind: Kind
    """hidden, soft, fusion or pause, see above."""
    latent_token: int
    """The id that stands at latent positions."""
    layer: int = -1
    """hidden and fusion: whose state is read, counted as transformers counts hidden states: -1 is the last one, after
    the final norm; -2 .. -L the residual stream after the blocks before."""
    alpha: float = 0.6
    """fusion: share of the state; the rest is the predicted embedding."""
    top_p: float = 0.8
    """soft and fusion: only the likeliest ids whose probability reaches top_p are mixed."""
    temperature: float = 1.0
    """soft and fusion: divides the logits."""
    inclusive: bool = True
    """soft and fusion: whether the id that crosses top_p is kept (the paper) or left out (the released code)."""
    adapter: nn.Module | None = None
    """fusion and hidden: a map [.., d] -> [.., d] of the state."""
    vector: Tensor | None = None
    """pause: the vector [d]; None means the latent token's own row of the embedding."""

    def __post_init__(self) -> None:
        """Raise ConfigError for values that mean nothing."""
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"fill.kind = {self.kind} is unknown; the nearest is {nearest(self.kind, get_args(Kind))}"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"fill.alpha must lie between 0 and 1, got {self.alpha}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"fill.top_p must lie in (0, 1], got {self.top_p}")
        if self.temperature <= 0:
            raise ConfigError(f"fill.temperature must be greater than 0, got {self.temperature}")

    @property
    def feedback(self) -> bool:
        """Whether a latent depends on the position before it; without feedback one pass is exact."""
        return self.kind != "pause"

    @property
    def reads_logits(self) -> bool:
        """Whether the prediction of the position before is wanted."""
        return self.kind in ("soft", "fusion")

    def block(self, model: ModelConfig) -> int | None:
        """The block whose output is read; None for the last state, after the final norm.

        Raises ConfigError for a layer that the model does not have.
        """
        index = self.layer if self.layer >= 0 else self.layer + model.num_layers + 1
        if not 1 <= index <= model.num_layers:
            raise ConfigError(
                f"fill.layer = {self.layer} is no layer of a model with {model.num_layers} blocks; "
                f"it must lie between -{model.num_layers} and -1"
            )
        return None if index == model.num_layers else index - 1

    def inputs(self, decoder: Decoder, scale: float, hidden: Tensor, layered: Tensor) -> Tensor:
        """Inputs z [n, d] of n latents, before positions are added.

        hidden [n, d] are the states after the final norm of the positions before them, layered [n, d] those of the
        layer that the fill reads; `scale` is the factor on embeddings.
        """
        if self.kind == "pause":
            vector = (
                decoder.embedding.weight[self.latent_token] * scale if self.vector is None else self.vector
            )
            return vector.to(hidden.dtype).expand_as(hidden)
        state = layered if self.adapter is None else self.adapter(layered)
        if self.kind == "hidden":
            return state
        mixed = self._mixed(decoder, hidden) * scale
        return mixed if self.kind == "soft" else self.alpha * state + (1 - self.alpha) * mixed

    def _mixed(self, decoder: Decoder, hidden: Tensor) -> Tensor:
        """e_pred [n, d] of states [n, d]; probabilities exist for ROWS rows at a time, the backward makes them again."""

        def some(rows: Tensor) -> Tensor:
            return predicted_embedding(
                decoder.head(rows), decoder.embedding.weight, self.top_p, self.temperature, self.latent_token,
                self.inclusive,
            )  # fmt: skip

        if len(hidden) <= ROWS:
            return some(hidden)
        return torch.cat([checkpoint(some, rows, use_reentrant=False) for rows in hidden.split(ROWS)])


def predicted_embedding(
    logits: Tensor,
    table: Tensor,
    top_p: float,
    temperature: float,
    latent_token: int | None,
    inclusive: bool = True,
) -> Tensor:
    """sum over w of P(w) E(w), with P = softmax(logits / temperature) cut to top_p and renormalised.

    logits [n, V], table [V, d] -> [n, d] in the table's dtype; the latent token has no probability. `inclusive` keeps
    the id that crosses top_p, otherwise it goes too, though never the likeliest one (LT-Tuning, arXiv 2602.10229).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if latent_token is not None:
        hidden = torch.arange(logits.shape[-1], device=logits.device) == latent_token
        logits = logits.masked_fill(hidden, float("-inf"))
    p = logits.softmax(dim=-1)
    if top_p < 1:
        descending, order = p.sort(dim=-1, descending=True, stable=True)
        reached = descending.detach().cumsum(dim=-1)
        beyond = reached - descending.detach() >= top_p if inclusive else reached > top_p
        beyond[..., 0] = False
        p = torch.zeros_like(p).scatter(-1, order, descending.masked_fill(beyond, 0.0))
        p = p / p.sum(dim=-1, keepdim=True)
    return p.to(table.dtype) @ table


class Adapter(nn.Module):
    """A(h) = W_up GELU(W_down h) (LT-Tuning, the variant for large untied models)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        return self.up(torch.nn.functional.gelu(self.down(h)))
