"""Are the latents used? What accuracy becomes without them or with others, and what they look like.

fewer      accuracy with another number of latents after the question than in training (Coconut's layout)
replaced   accuracy when every latent is another question's, the mean of the batch, or noise of the same size
steps      latent by latent: how alike they are, and what the head reads from the state there (logit lens)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from latentpt.data.tokenizer import Tokenizer
from latentpt.evaluation.diagnostics import Collapse, collapse_of
from latentpt.finetuning.accuracy import Answered, answer
from latentpt.finetuning.fills import Fill
from latentpt.finetuning.generate import latent_generate
from latentpt.finetuning.layout import lay_out
from latentpt.finetuning.reasoner import Reasoner, Recipe
from latentpt.finetuning.rollout import latent_hidden
from latentpt.finetuning.rows import Pieces
from latentpt.modeling.decoder import Decoder
from latentpt.seeding import stream

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChangedFill(Fill):
    """A fill whose latents [n, d] are what `change` makes of them."""

    change: Change = field(kw_only=True)

    def inputs(self, decoder: Decoder, scale: float, hidden: Tensor, layered: Tensor) -> Tensor:
        """As Fill.inputs, changed."""
        return self.change(super().inputs(decoder, scale, hidden, layered))


def changed(fill: Fill, change: Change) -> ChangedFill:
    """The same fill with its latents changed."""
    return ChangedFill(**{f.name: getattr(fill, f.name) for f in fields(Fill)}, change=change)


def swapped(z: Tensor) -> Tensor:
    """Every row gets the latent of the row before it, the first one that of the last."""
    return z.roll(1, dims=0)


def averaged(z: Tensor) -> Tensor:
    """Every row gets the mean."""
    return z.mean(dim=0, keepdim=True).expand_as(z)


def noise(z: Tensor) -> Tensor:
    """Every row gets a random direction of the same length."""
    drawn = torch.randn(z.shape, generator=stream(0, "noise")).to(z)
    return drawn / drawn.norm(dim=-1, keepdim=True) * z.norm(dim=-1, keepdim=True)


REPLACEMENTS: dict[str, Change] = {
    "another question's": swapped,
    "the mean of all": averaged,
    "noise of the same size": noise,
}


@dataclass(frozen=True)
class LatentStep:
    """The latents of one step, over all questions."""

    collapse: Collapse
    """How alike they are."""
    entropy: float
    """Nats of the prediction made there, mean."""
    tokens: list[tuple[str, float]]
    """What the head would say there, with shares."""


@dataclass(frozen=True)
class LatentReport:
    """Everything found out about one model on some questions."""

    plain: Answered
    """As the model is used."""
    fewer: dict[int, Answered]
    """Latents after the question -> answers; empty where the model decides itself."""
    never: Answered | None
    """Latents forbidden, where the model decides itself."""
    replaced: dict[str, Answered]
    steps: list[LatentStep]

    @property
    def verdict(self) -> str:
        """One sentence that says whether the content of the latents matters."""
        if self.plain.latents == 0:
            return "No latent was thought, so none did anything."
        if not self.replaced:
            return "Every latent is the same learned vector, so there is nothing in it to be used."
        drops = {name: accuracy(self.plain) - accuracy(found) for name, found in self.replaced.items()}
        name, drop = max(drops.items(), key=lambda item: item[1])
        error = standard_error(self.plain, self.replaced[name])
        amount = f"{100 * drop:+.1f} points lost, standard error {100 * error:.1f}"
        if drop > 2 * error:
            return f"The content of the latents is used: with {name} accuracy falls ({amount})."
        return (
            "What is in the latents makes no measurable difference: no replacement costs more than two standard "
            f"errors (the most with {name}: {amount})."
        )


def accuracy(found: Answered) -> float:
    """Share of right answers."""
    return found.right / found.asked


def standard_error(a: Answered, b: Answered) -> float:
    """Standard error of the difference of two accuracies, as of independent samples."""
    return math.sqrt(sum(accuracy(x) * (1 - accuracy(x)) / x.asked for x in (a, b)))


@torch.no_grad()
def diagnose_latents(
    reasoner: Reasoner,
    recipe: Recipe,
    tokenizer: Tokenizer,
    questions: Sequence[Pieces],
    batch: int,
    max_new_tokens: int,
) -> LatentReport:
    """Find out all of it. Batches of one question are left out of the replacements by another's."""

    def ask(change: Change | None = None, latents: int | None = None, used: Recipe = recipe) -> Answered:
        return answer(
            reasoner, used, tokenizer, questions, batch, max_new_tokens, None, latents,
            None if change is None else lambda fill: changed(fill, change),
        )  # fmt: skip

    plain = ask()
    decides = recipe.mode == "lt_tuning" and recipe.kind is not None
    thinks = reasoner.fill(recipe).feedback and (recipe.latents > 0 or decides)
    fewer = {}
    if recipe.latents:
        fewer = {count: ask(latents=count) for count in range(recipe.latents + 3) if count != recipe.latents}
    return LatentReport(
        plain=plain,
        fewer=fewer,
        never=ask(used=recipe.model_copy(update={"switch": "never"})) if decides else None,
        replaced={name: ask(change) for name, change in REPLACEMENTS.items()} if thinks else {},
        steps=latent_steps(reasoner, recipe, tokenizer, questions[: 4 * batch], max_new_tokens)
        if thinks
        else [],
    )


@torch.no_grad()
def latent_steps(
    reasoner: Reasoner,
    recipe: Recipe,
    tokenizer: Tokenizer,
    questions: Sequence[Pieces],
    max_new_tokens: int,
    most: int = 8,
) -> list[LatentStep]:
    """The first `most` latents of the questions, in the sequences that the model makes of them."""
    model, seen = reasoner.language, []

    def note(z: Tensor) -> Tensor:
        seen.append(z)
        return z

    fill = reasoner.fill(recipe)
    prompts = [recipe.prompt(pieces.question) for pieces in questions]
    if recipe.mode == "lt_tuning":
        found = latent_generate(model, prompts, fill, max_new_tokens, recipe.end, recipe.decision())
        prompts = [prompt + new for prompt, new in zip(prompts, found, strict=True)]
    width, device = max(map(len, prompts)), next(model.parameters()).device
    ids = torch.tensor([row + [0] * (width - len(row)) for row in prompts], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in prompts], device=device)
    layout = lay_out(ids, fill.latent_token, mask)
    hidden = latent_hidden(model, ids, changed(fill, note), layout, schedule=model.method.exact_schedule())
    tokens = model.decoder.embedding.weight * model.method.embed_scale
    steps = []
    for number, (z, cells) in enumerate(zip(seen, layout.segments[1:], strict=False), start=1):
        there = cells.latent[:, 0]
        if number > most or int(there.sum()) < 2:
            break
        states = hidden[there, cells.columns[there, 0]]
        p = model.decoder.head(states).float().softmax(-1)
        said = Counter(p.argmax(-1).tolist()).most_common(3)
        shares = [(tokenizer.decode([token]), count / len(p)) for token, count in said]
        entropy = -(p * p.clamp(min=1e-30).log()).sum(-1).mean().item()
        steps.append(LatentStep(collapse_of(number, z[there][:, None], tokens[:, None]), entropy, shares))
    return steps
