"""The training forwards: a batch whose latent positions read what the positions before them came to.

    segments   each row is cut at its own latents; the j-th segments of all rows run together on the keys and values of
               those before. Exact; every position runs once.
    jacobi     the whole batch runs `passes` + 1 times, each time with latents filled from the time before. Exact when
               passes >= most latents in a row; fewer are an approximation with a fixed number of passes.

Gradients flow through every fill and through all keys and values.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentpt.finetuning.fills import Fill
from latentpt.finetuning.layout import Layout, Segment, lay_out, most_latents
from latentpt.finetuning.stretch import Thinking
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule

Engine = Literal["segments", "jacobi"]


class LatentOutput(NamedTuple):
    """What a forward returns."""

    loss: Tensor | None
    """Mean cross-entropy in nats over the supervised tokens, if there were labels."""
    logits: Tensor | None
    """[B, T, V]; zero at padding; None if not wanted."""


def latent_forward(
    model: LanguageModel,
    input_ids: Tensor,
    fill: Fill,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    engine: Engine = "segments",
    passes: int | None = None,
    schedule: Schedule | None = None,
) -> LatentOutput:
    """Predict the next token at every position of ids int64 [B, T], latent ones included.

    attention_mask [B, T] is 0 at padding, which may be anywhere; position_ids [B, T] count real columns by default.
    labels [B, T] are unshifted, -100 is ignored; the loss is the mean over supervised tokens. `passes`: with jacobi how
    often latents are refilled after the first pass, by default the most latents in a row, which is exact; with
    segments the least number of passes, where several ranks must make the same number. `schedule` says how the
    model's own thoughts are solved, by default as in its training. Raises ValueError for a latent without a position
    before it and for a sequence that a learned table of positions does not hold.
    """
    cut = engine == "segments" and fill.feedback
    layout = lay_out(
        input_ids, fill.latent_token, attention_mask, position_ids, cut, (passes or 1) if cut else 1
    )
    if engine == "jacobi" and passes is None:
        passes = most_latents(input_ids, fill.latent_token)
    hidden = latent_hidden(model, input_ids, fill, layout, passes if engine == "jacobi" else None, schedule)
    loss = None
    if labels is not None:
        targets = layout.targets(labels)
        loss = model.decoder.head(hidden, targets) / (targets != IGNORE).sum().clamp(min=1)
    return LatentOutput(loss, model.decoder.head(hidden))


def latent_hidden(
    model: LanguageModel,
    ids: Tensor,
    fill: Fill,
    layout: Layout,
    refills: int | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """States after the final norm [B, T, d] of ids [B, T] in a layout, zero at padding.

    With `refills` the layout is one segment that runs so many times after the first (jacobi).
    """
    check_length(model, ids.shape[1])
    schedule = schedule or model.method.schedule()
    block = fill.block(model.config)
    tokens = model.method.tokens(model.decoder, ids, layout.positions)
    if not fill.feedback:
        refills = 0  # one pass, or as many as the layout is cut for
    if refills is None or not fill.feedback:
        hidden = Rollout(model, fill, Thinking(model, schedule, block), layout.holes).run(tokens, layout)
    else:
        hidden = _refilled(model, fill, tokens, layout, refills, schedule, block)
    found = hidden.gather(1, layout.place[..., None].expand(-1, -1, hidden.shape[-1]))
    if layout.padded:
        real = torch.zeros_like(ids, dtype=torch.bool)
        for segment in layout.segments:
            real = real.scatter_reduce(1, segment.columns, segment.alive, "amax")
        found = found * real[..., None]
    return found


def check_length(model: LanguageModel, width: int) -> None:
    """Raise ValueError if a learned table of positions does not hold so many."""
    if model.config.positions == "learned" and width > model.config.max_positions:
        raise ValueError(f"{width} tokens do not fit model.max_positions = {model.config.max_positions}")


class Rollout:
    """Segment after segment; between two of them every row keeps the state of its last real position."""

    def __init__(self, model: LanguageModel, fill: Fill, thinking: Thinking, holes: bool) -> None:
        self.model, self.fill, self.thinking, self.holes = model, fill, thinking, holes
        self.hidden: Tensor | None = None
        self.layered: Tensor | None = None

    def run(self, tokens: Tokens, layout: Layout) -> Tensor:
        """All segments of a layout; the states of their cells after the final norm, [B, cells, d]."""
        return torch.cat([self.segment(tokens, cells) for cells in layout.segments], dim=1)

    def segment(self, tokens: Tokens, cells: Segment) -> Tensor:
        """One segment; states after the final norm [B, n, d]."""
        here = take(tokens, cells.columns)
        if self.hidden is not None or not self.fill.feedback:
            here = self.filled(here, cells.latent)
        hidden, layered = self.thinking.run(here, cells.alive, self.holes)
        self.remember(hidden, layered, cells.last)
        return hidden

    def filled(self, tokens: Tokens, latent: Tensor) -> Tokens:
        """The tokens with the inputs of latents [B, n] replaced; with feedback only the first column has any."""
        if not self.fill.feedback:
            embeds = tokens.embeds
            z = self.fill.inputs(
                self.model.decoder, self.model.method.embed_scale, embeds[:, :, 0], embeds[:, :, 0]
            )
            return replaced(tokens, latent, z)
        assert self.hidden is not None and self.layered is not None
        z = self.fill.inputs(
            self.model.decoder, self.model.method.embed_scale, self.hidden, self.layered
        )[:, None]  # fmt: skip
        first = replaced(tokens.at(slice(0, 1)), latent[:, :1], z)
        return tokens._replace(embeds=torch.cat([first.embeds, tokens.embeds[:, 1:]], dim=1))

    def remember(self, hidden: Tensor, layered: Tensor, last: Tensor) -> None:
        """Keep the states at each row's last cell; rows without a cell keep what they had."""
        index = last.clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[-1])
        new = [states.gather(1, index)[:, 0] for states in (hidden, layered)]
        if self.hidden is not None and self.layered is not None:
            had = (last >= 0)[:, None]
            new = [
                torch.where(had, now, old) for now, old in zip(new, (self.hidden, self.layered), strict=True)
            ]
        self.hidden, self.layered = new


def _refilled(
    model: LanguageModel,
    fill: Fill,
    tokens: Tokens,
    layout: Layout,
    refills: int,
    schedule: Schedule,
    block: int | None,
) -> Tensor:
    """Jacobi: the one segment again and again, latents filled from the time before."""
    (cells,) = layout.segments
    tokens = take(tokens, cells.columns)
    hidden, layered = Thinking(model, schedule, block).run(tokens, cells.alive, layout.holes)
    rows, columns = layout.latents
    for _ in range(refills):
        z = fill.inputs(
            model.decoder, model.method.embed_scale, hidden[rows, columns - 1], layered[rows, columns - 1]
        )
        latents = torch.zeros_like(hidden).index_put((rows, columns), z.to(hidden.dtype))
        here = replaced(tokens, cells.latent, latents)
        hidden, layered = Thinking(model, schedule, block).run(here, cells.alive, layout.holes)
    return hidden


def take(tokens: Tokens, columns: Tensor) -> Tokens:
    """The tokens [B, n] at columns int64 [B, n] of each row of tokens [B, T]."""

    def pick(x: Tensor) -> Tensor:
        return x.gather(1, columns[:, :, None, None].expand(-1, -1, *x.shape[2:]))

    return Tokens(
        tokens.ids.gather(1, columns),
        pick(tokens.embeds),
        None if tokens.rows is None else pick(tokens.rows),
        tokens.positions.gather(1, columns),
    )


def replaced(tokens: Tokens, latent: Tensor, z: Tensor) -> Tokens:
    """The tokens with inputs z [B, n, d], on the rows of their positions, where `latent` [B, n]."""
    placed = tokens.placed(z[:, :, None].to(tokens.embeds.dtype))
    return tokens._replace(embeds=torch.where(latent[..., None, None], placed, tokens.embeds))
