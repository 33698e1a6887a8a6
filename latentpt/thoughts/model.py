"""The language model: a decoder and the method by which it thinks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder, initialize
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.documents import document_positions
from latentpt.thoughts.execute import Streams, Watch, execute
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.plan import PlanError, compile_plan
from latentpt.thoughts.registry import make_method
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.state import Cache, State


class ModelOutput(NamedTuple):
    """What a forward returns."""

    loss: Tensor | None
    """Mean cross-entropy in nats over the targets, if there were any."""
    logits: Tensor | None
    """[B, L, V], one row per position: that of its last slot; None if not wanted."""


class LanguageModel(nn.Module):
    """p(x_{t+1} | x_{<= t}) = softmax(W_o h(t, N)): every position thinks N latents before its token is predicted."""

    def __init__(
        self,
        model: ModelConfig,
        thoughts: ThoughtsConfig,
        attention: str = "sdpa",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.thoughts = model, thoughts
        self.decoder = Decoder(model, attention, checkpoint_activations)
        self.method = make_method(thoughts, model)

    def initialize(self, seed: int) -> None:
        """Fresh weights, a function of the seed alone (methods.md section 2)."""
        deeper = self.method.slots if self.config.family == "pythia" else 1
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        initialize(self, seed, std, residual_std=std / math.sqrt(2 * self.config.num_layers * deeper))

    def training_schedule(self, seed: int, step: int) -> Schedule:
        """The schedule of one training step, equal on every rank."""
        return self.method.training_schedule(seed, step)

    def state(self, slots: int | None = None) -> State:
        """An empty state, for `slots` slots per position (None: all)."""
        return State(self.method.traits(slots))

    def cache(self, rows: int, capacity: int, kind: type[Cache] = Cache) -> Cache:
        """An empty state with room for `capacity` positions of `rows` sequences, for decoding without gradient.

        Raises ValueError if a learned table has fewer positions.
        """
        self._check_fits(capacity)
        return kind(self.method.traits(), self.config, rows, capacity, next(self.parameters()))

    def tokens(
        self, input_ids: Tensor, start: int = 0, documents: Tensor | None = None, alive: Tensor | None = None
    ) -> Tokens:
        """Ids int64 [B, L] as a method reads them, from position `start` on.

        `documents` [B, L], the number of each token's document, keeps attention and states inside a document and lets
        positions restart with it; `alive` [B, L] is the number of slots that each token thinks.
        """
        end = start + input_ids.shape[1]
        self._check_fits(end)
        positions = torch.arange(start, end, device=input_ids.device)
        if documents is not None:
            assert start == 0, "a stretch of several documents begins at position 0"
            positions = document_positions(documents)
        return self.method.tokens(self.decoder, input_ids, positions)._replace(
            documents=documents, alive=alive
        )

    def read(
        self,
        tokens: Tokens,
        schedule: Schedule | None = None,
        state: State | None = None,
        watch: Watch | None = None,
    ) -> list[Streams]:
        """Run a schedule over tokens that follow the state, which grows by them; see `latentpt.thoughts.execute`.

        Raises PlanError if the schedule needs what nobody provides, or does not go on from this state.
        """
        schedule = schedule or self.method.schedule()
        traits = self.method.traits(schedule.slots)
        if state is not None and state.traits != traits:
            raise PlanError(
                f"a schedule of {schedule.slots} slots cannot go on from a state of {state.traits.slots}"
            )
        read_all = tokens.alive is not None or (watch is not None and watch.every_slot)
        plan = compile_plan(traits, schedule, tokens.ids.shape[1], state is not None, read_all)
        return execute(self.decoder, self.method, tokens, plan, state, watch)

    def think(
        self,
        input_ids: Tensor,
        schedule: Schedule | None = None,
        state: State | None = None,
        watch: Watch | None = None,
        documents: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> Tensor:
        """Hidden states h(t, N) after the final norm, [B, L, d], of ids int64 [B, L] under the schedule.

        `state` is what came before, and grows by these tokens; for `documents` and `alive` see `tokens`.
        """
        tokens = self.tokens(input_ids, 0 if state is None else state.positions, documents, alive)
        return self.decoder.norm(self.read(tokens, schedule, state, watch)[-1].x)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        target_count: Tensor | None = None,
        schedule: Schedule | None = None,
        return_logits: bool = True,
        watch: Watch | None = None,
        documents: Tensor | None = None,
    ) -> ModelOutput:
        """Predict the next token at every position of ids int64 [B, L].

        `labels` [B, L] are the ids themselves and are shifted inside; `targets` [B, L] are already the next tokens.
        Positions whose target is -100 carry no loss. The loss is the nats, summed over targets and the sweeps that the
        schedule weighs, over `target_count` (None: the number of targets, at least 1). `watch` looks on; `documents`
        [B, L], the number of each token's document, keeps documents apart.
        """
        streams = self.read(self.tokens(input_ids, documents=documents), schedule, watch=watch)
        hidden = [(self.decoder.norm(x), weight) for x, weight in streams]
        if labels is not None:
            targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
        loss = None
        if targets is not None:
            nats = [weight * self.decoder.head(h, targets) for h, weight in hidden if weight]
            count = (targets != IGNORE).sum().clamp(min=1) if target_count is None else target_count
            loss = torch.stack(nats).sum() / count
        logits = self.decoder.head(hidden[-1][0]) if return_logits else None
        return ModelOutput(loss, logits)

    def _check_fits(self, positions: int) -> None:
        if self.config.positions == "learned" and positions > self.config.max_positions:
            raise ValueError(
                f"{positions} tokens do not fit model.max_positions = {self.config.max_positions}, a learned table"
            )
