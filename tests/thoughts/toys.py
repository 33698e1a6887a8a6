"""Toy methods that no user needs: what the core must be able to say, a few lines each."""

import torch
from torch import nn

from latentpt.modeling.attention import Injection
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.schedule import Schedule, Sweep


class Carry(ThoughtMethod):
    """Slot 0 reads its token and half the last state of the position before; latent slots the state before them."""

    carry = True

    def inject(self, decoder, tokens, slots, before):
        return before.states if slots[0] else tokens.embeds + 0.5 * before.states


class TwoLosses(ThoughtMethod):
    """One thought, and the token slot predicts too: loss on the first sweep and on the last."""

    def inject(self, decoder, tokens, slots, before):
        return before.states

    def schedule(self, refinements=None, slots=None):
        return Schedule((Sweep(1, weight=0.25), Sweep(2), Sweep(2, weight=0.75)))


class Gate(Injection):
    """Adds a share of the memory to the stream, and a projection of it to keys and values."""

    def __init__(self, model):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))
        self.project = nn.Linear(model.hidden_size, model.kv_heads * model.head_width, bias=False)

    def residual(self, x, memory):
        return x if memory is None else x + self.rate * memory

    def keys_values(self, x, k, v, memory):
        if memory is None:
            return k, v
        more = self.project(memory).view_as(k)
        return k + more, v - more


class Inside(Carry):
    """The state of the position before goes into every layer, and into slot 0 as it is taken off the middle of the stack."""

    def __init__(self, config, model):
        super().__init__(config, model)
        self.tap = model.num_layers // 2
        self.injections = nn.ModuleList(Gate(model) for _ in range(model.num_layers))

    def states(self, decoder, x):
        return torch.tanh(x)


TOYS = {
    "carry": Carry,
    "two_losses": TwoLosses,
    "inside": Inside,
}
