"""Latent thoughts whose number each token finds for itself: Adaptive Latent CoT and PonderLM-3.

Both feed the last state to the next slot as PonderLM-2 does and predict from a mixture of slots (`halting`). Of neither was
the code at hand, and a second source gives no hyperparameters: thresholds, prices and PonderLM-3's penalty are the simplest forms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentpt.config import ConfigError
from latentpt.modeling.attention import HIDDEN
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.halting import Routed, Router
from latentpt.thoughts.latent import Latent
from latentpt.thoughts.plan import Visibility
from latentpt.thoughts.state import Before


class RoutedLatent(Latent):
    """Latent thoughts of which every slot predicts, so slots run through all layers."""

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        if self.span != (0, self.layers):
            raise ConfigError(
                f"thoughts.span = {config.span} with thoughts.method = {config.method}, whose slots all predict; "
                "the nearest span is all"
            )


class Alcot(RoutedLatent):
    """Adaptive Latent CoT (arXiv 2602.08220): a router at every slot, stage-causal, exact in N + 1 passes.

    The penalty is said to be weighed by the probability of the right token, to prune more with lambda and less with beta;
    here it is lambda sum_t q_t^beta sum_(s > 0) W(t, s), with lambda = `thought_price` and beta = `correctness`.
    """

    fixed_visibility = Visibility.STAGE_CAUSAL

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.halting = Reach(config, model)


class Ponder3(RoutedLatent):
    """PonderLM-3 (arXiv 2603.02023): the state of slot 0 divides the token among its slots; keys weigh what is left.

    Causal, by Jacobi sweeps like PonderLM-2. Slots' shares are a softmax, and the penalty is that of Adaptive Latent CoT with
    beta = 0 unless `correctness` says otherwise; the form of both is unknown.
    """

    fixed_visibility = Visibility.CAUSAL

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.halting = Tail(config, model)


class Reach(Routed):
    """W(t, s) = g(t, 0) .. g(t, s - 1), g(t, s) = sigmoid(w h(t, s) + b + 2): at every slot a token goes on or leaves.

    The 2 is ours: g starts near 0.9, so that later slots predict, and learn, before the router finds them of no use.
    """

    start = 2.0

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, correctness=1.0)
        self.router = Router(model.hidden_size, 1)

    def records(self, decoder: Decoder, slots: range, before: Before) -> Tensor:
        """log W."""
        assert before.records is not None
        return before.records + F.logsigmoid(self.router(before.states) + self.start)

    def flops(self, model: ModelConfig, slot: int) -> int:
        """One row of the router in every latent slot."""
        return 2 * model.hidden_size if slot else 0


class Tail(Routed):
    """W(t, s) = p(t, s) + .. + p(t, N), p(t) = softmax(A h(t, 0) + b): the first state decides on all slots."""

    weighs = True

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__(config, correctness=0.0)
        self.size = config.num_thoughts
        self.router = Router(model.hidden_size, config.num_slots)

    def records(self, decoder: Decoder, slots: range, before: Before) -> Tensor:
        """log W of the cell and of the slots after it: slot 1 asks the router, the others drop what was the slot's before."""
        assert before.records is not None
        later = F.pad(before.records[..., 1:], (0, 1), value=HIDDEN)
        if slots[0] != 1:
            return later
        logits = self.router(before.states[:, :, :1])
        tails = logits.flip(-1).logcumsumexp(-1).flip(-1) - logits.logsumexp(-1, keepdim=True)
        return torch.cat([tails[..., 1:], later[:, :, 1:]], dim=2)

    def flops(self, model: ModelConfig, slot: int) -> int:
        """The router, once a token."""
        return 2 * model.hidden_size * (self.size + 1) if slot == 1 else 0
