"""The language model: a decoder and the method by which it thinks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig, Recompute
from latentpt.modeling.decoder import Decoder, initialize
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.chance import make_chance
from latentpt.thoughts.compile import compile_plan
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.documents import document_positions
from latentpt.thoughts.execute import Prediction, execute
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.plan import PlanError
from latentpt.thoughts.registry import make_method
from latentpt.thoughts.schedule import Schedule
from latentpt.thoughts.state import Cache, State
from latentpt.thoughts.watch import Watch
from latentpt.thoughts.width import rates, scale_weights


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
        checkpoint_activations: Recompute = "none",
    ) -> None:
        super().__init__()
        self.config, self.thoughts = model, thoughts
        self.decoder = Decoder(model, attention, checkpoint_activations)
        self.method = make_method(thoughts, model)

    def initialize(self, seed: int) -> None:
        """Fresh weights, a function of the seed alone (methods.md section 2)."""
        for unit in self.units():
            self.initialize_unit(seed, unit)

    def units(self) -> list[nn.Module]:
        """Parts whose weights can be made one after the other: every block, then the model with all that is outside of blocks."""
        return [*self.decoder.blocks, self]

    def initialize_unit(self, seed: int, unit: nn.Module) -> None:
        """Fresh weights of one of the `units`."""
        deeper = self.method.slots if self.config.family == "pythia" else 1
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        residual = std / math.sqrt(2 * self.config.num_layers * deeper)
        inside = set(unit.parameters())
        if unit is self:
            inside -= set(self.decoder.blocks.parameters())
        named = {name: p for name, p in self.named_parameters() if p in inside}
        initialize(named, seed, std, residual, norm=1 - self.config.norm_offset)
        if unit is self:
            self.method.initialize(seed)
            scale_weights(self, self.config, self.method.embed_scale)

    def rates(self) -> dict[Tensor, float]:
        """Factors on the learning rate that the width asks for, see `latentpt.thoughts.width`; 1 for all others."""
        return rates(self, self.config, self.method.embed_scale)

    def training_schedule(self, seed: int, step: int) -> Schedule:
        """The schedule of one training step, equal on every rank."""
        return self.method.training_schedule(seed, step)

    def state(self, slots: int | None = None) -> State:
        """An empty state, for `slots` slots per position (None: all)."""
        return State(self.method.traits(slots))

    def cache(self, rows: int, capacity: int, kind: type[Cache] = Cache) -> Cache:
        """An empty state with room for `capacity` positions of `rows` sequences, for decoding without gradient.

        Raises ValueError if a learned table has fewer positions, or keys would turn otherwise as the text grows.
        """
        self._check_fits(capacity)
        self._check_turns(capacity)
        return kind(self.method.traits(), self.config, rows, capacity, next(self.parameters()))

    def tokens(
        self,
        input_ids: Tensor,
        start: int = 0,
        documents: Tensor | None = None,
        alive: Tensor | None = None,
        key: int | None = None,
    ) -> Tokens:
        """Ids int64 [B, L] as a method reads them, from position `start` on.

        `documents` [B, L], the number of each token's document, keeps attention and states inside a document and lets
        positions restart with it; `alive` [B, L] is the number of slots that each token thinks; `key` is what the random
        numbers of a training forward follow from.
        """
        end = start + input_ids.shape[1]
        self._check_fits(end)
        positions = torch.arange(start, end, device=input_ids.device)
        if documents is not None:
            assert start == 0, "a stretch of several documents begins at position 0"
            positions = document_positions(documents)
        chance = None if key is None else make_chance(key, input_ids, positions)
        return self.method.tokens(self.decoder, input_ids, positions)._replace(
            documents=documents, alive=alive, chance=chance
        )

    def read(
        self,
        tokens: Tokens,
        schedule: Schedule | None = None,
        state: State | None = None,
        watch: Watch | None = None,
    ) -> list[Prediction]:
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
        if state is not None or len(plan.stretches) > 1:
            self._check_turns(tokens.ids.shape[1] + (0 if state is None else state.positions))
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
        return self.read(tokens, schedule, state, watch)[-1].hidden

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
        schedule weighs, and the price of the thoughts where the method has one, over `target_count` (None: the number of
        targets, at least 1). `watch` looks on; `documents` [B, L], the number of each token's document, keeps documents apart.
        """
        key = None if schedule is None else schedule.key
        read = self.read(self.tokens(input_ids, documents=documents, key=key), schedule, watch=watch)
        if labels is not None:
            targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
        loss = None
        if targets is not None:
            nats = [one.weight * self._nats(one, targets) for one in read if one.weight]
            count = (targets != IGNORE).sum().clamp(min=1) if target_count is None else target_count
            loss = torch.stack(nats).sum() / count
        logits = self.decoder.head(read[-1].hidden) if return_logits else None
        return ModelOutput(loss, logits)

    def _nats(self, read: Prediction, targets: Tensor) -> Tensor:
        """Summed nats of one sweep's predictions, and what the method adds to them."""
        halting, weights = self.method.halting, read.slot_weights
        if halting is None or weights is None or not halting.price:
            return self.decoder.head(read.hidden, targets)
        total, each = self.decoder.head(read.hidden, targets, by_row=True)
        return total + halting.penalty(weights, each, targets)

    def _check_fits(self, positions: int) -> None:
        if self.config.positions == "learned" and positions > self.config.max_positions:
            raise ValueError(
                f"{positions} tokens do not fit model.max_positions = {self.config.max_positions}, a learned table"
            )

    def _check_turns(self, positions: int) -> None:
        scaling, limit = self.config.rope_scaling, self.config.max_positions
        if scaling is not None and scaling.kind == "dynamic" and positions > limit:
            raise ValueError(
                f"{positions} tokens cannot be read piece by piece under dynamic rope scaling, which turns the keys of all "
                f"of them otherwise once there are more than model.max_positions = {limit}"
            )
