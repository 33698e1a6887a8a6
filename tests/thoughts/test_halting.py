"""Tokens that think different numbers of slots: what stops them, what predicts, what is skipped."""

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.generation.ahead import can_think_ahead
from latentpt.generation.static import why_not_static
from latentpt.modeling.attention import HIDDEN
from latentpt.modeling.loss import IGNORE
from latentpt.thoughts.cost import inference_flops_per_token, schedule_cost
from latentpt.thoughts.measure import summed_loss
from latentpt.thoughts.schedule import gauss_seidel, jacobi, sequential
from latentpt.thoughts.watch import Watch
from tests.conftest import tiny_ids, tiny_model
from tests.thoughts.oracle import oracle

METHODS = ("alcot", "ponder3")
LATENT = {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"}


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def make(method, family="llama", **more):
    return tiny_model(family, weights=1.5, **{"method": method, "num_thoughts": 2, **more})


def weights(model, ids):
    """W [B, L, S] of the exact model."""
    return model.read(model.tokens(ids), model.method.exact_schedule())[-1].slot_weights


def stop_half(model, ids):
    """Let about half of the tokens stop after slot 0."""
    model.method.stop_below(1e-9)
    model.method.stop_below(weights(model, ids)[..., 1].median().item() * 0.9999)


def decoded(model, ids):
    """States [B, L, d] of decoding token by token into a cache, and the cells [slot -> rows] that ran."""
    ran, blocks = [], model.decoder.blocks
    handle = blocks[0].register_forward_hook(lambda module, inputs, found: ran.append(len(inputs[0])))
    cache, exact = model.cache(*ids.shape), model.method.exact_schedule()
    with torch.no_grad():
        found = [model.think(ids[:, t : t + 1], exact, cache) for t in range(ids.shape[1])]
    handle.remove()
    return torch.cat(found, dim=1), sum(ran)


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_that_nobody_falls_below_is_the_unpruned_mixture(family, method):
    model, ids = make(method, family), tiny_ids()
    whole = model.think(ids, model.method.exact_schedule())
    states = {}

    class Slots(Watch):
        every_slot = True

        def ran(self, step, u, x):
            states.update({c.slot: model.decoder.norm(x[:, :, i]) for i, c in enumerate(step.columns)})

    if method == "alcot":
        model.think(ids, model.method.exact_schedule(), watch=Slots())
        w = weights(model, ids)
        p = w - torch.nn.functional.pad(w[..., 1:], (0, 1))
        close(p.sum(-1), torch.ones_like(p[..., 0]))
        close(whole, sum(p[..., s, None] * states[s] for s in range(3)))
    model.method.stop_below(1e-9)  # the path that stops, and no token that does
    close(model.think(ids, model.method.exact_schedule()), whole)
    close(decoded(model, ids)[0], whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_enough_sweeps_equal_sequential_and_cached_decoding_and_the_formulas(family, method, threshold):
    model, ids = make(method, family, threshold=threshold), tiny_ids(length=6)
    expected = oracle(model, ids)
    close(model.think(ids, sequential(3)), expected)
    close(model.think(ids, gauss_seidel(3, 18)), expected)
    close(model.think(ids, jacobi(3, 18)), expected)
    close(decoded(model, ids)[0], expected)


@pytest.mark.parametrize("method", [*METHODS, "latent"])
def test_a_row_thinks_alone_what_it_thinks_in_a_batch_whatever_the_others_stop_at(method):
    model, ids = make(method, visibility="stage_causal"), tiny_ids(4, 8)
    stop_half(model, ids)
    depths = (weights(model, ids) > 0).sum(-1)
    assert len({tuple(row) for row in depths.tolist()}) > 1 and 1 < depths.double().mean() < 3
    together, _ = decoded(model, ids)
    for row in range(4):
        close(together[row : row + 1], decoded(model, ids[row : row + 1])[0])


@pytest.mark.parametrize("method", [*METHODS, "latent"])
def test_a_token_that_stops_is_never_run_in_a_batch_either(method):
    model, ids = make(method, visibility="stage_causal"), tiny_ids(4, 8)
    stop_half(model, ids)
    assert decoded(model, ids)[1] == int((weights(model, ids) > 0).sum()) < 4 * 8 * 3
    model.method.stop_below(1.0)
    assert decoded(model, ids)[1] == 4 * 8


def test_tokens_that_stop_are_seen_by_nobody():
    model, ids = make("alcot", threshold=0.8), tiny_ids()
    w, seen = weights(model, ids), []

    class See(Watch):
        def attended(self, step, layer, q, k):
            if layer:
                seen.append(k[..., -1])

    model.think(ids, model.method.exact_schedule(), watch=See())
    for slot, columns in enumerate(seen):
        assert torch.equal(columns[:, :, 0, 0] == HIDDEN, w[..., slot] == 0)
    assert (w == 0).any() and (w[..., 1:] > 0).any()


@pytest.mark.parametrize("visibility", ["causal", "stage_causal"])
def test_confidence_lets_any_latent_model_stop_and_the_last_thought_predict(family, visibility):
    model, ids = tiny_model(family, **{**LATENT, "visibility": visibility}), tiny_ids()
    plain = model.think(ids, model.method.exact_schedule())
    model.method.stop_below(1e-9)  # the path that stops, and no token that does
    close(model.think(ids, model.method.exact_schedule()), plain)
    stop_half(model, ids)
    found = model.think(ids, sequential(3))
    close(found, oracle(model, ids))
    close(decoded(model, ids)[0], found)
    # Slot 0 of the first token sees no thoughts, so it doubts as slot 0 alone.
    first = model.decoder.head(model.think(ids[:, :1], sequential(1))).softmax(-1).amax((1, 2))
    stops = 1 - first < model.method.halting.threshold
    assert stops.tolist() == (weights(model, ids)[:, 0, 1] == 0).tolist()
    alive = (weights(model, ids) > 0).sum(-1)
    assert 1 < alive.double().mean() < 3
    model.method.halting = None
    close(found, model.think(ids, sequential(3), alive=alive))


def test_a_threshold_of_0_leaves_a_model_without_a_router_as_fast_as_it_was():
    """Tokens that think different numbers of slots are neither recorded as a graph nor thought ahead of."""
    model = tiny_model(**{**LATENT, "visibility": "causal"})
    for threshold, fast in ((0.0, True), (0.5, False), (0.0, True)):
        model.method.stop_below(threshold)
        assert (why_not_static(model) is None) == can_think_ahead(model) == fast
    with pytest.raises(ConfigError, match="the nearest that is one is 0"):
        model.method.stop_below(-0.1)


def test_what_cannot_stop_says_so():
    for method, thoughts in (("vanilla", 0), ("pause", 1), ("loop", 1)):
        with pytest.raises(
            ConfigError, match=f"thoughts.method = {method} has no thoughts that a token could leave"
        ):
            tiny_model(method=method, num_thoughts=thoughts).method.stop_below(0.5)
    with pytest.raises(ConfigError, match="the nearest that is one is 1"):
        make("alcot").method.stop_below(1.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_span_of_layers_is_refused_where_all_slots_predict(method):
    with pytest.raises(
        ConfigError, match=f"thoughts.span = middle with thoughts.method = {method}, .* nearest span is all"
    ):
        make(method, size={"num_layers": 3}, span="middle")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_gradient_reaches_the_router_through_the_mixture_and_through_the_price(method, threshold):
    free, dear = (make(method, threshold=threshold, thought_price=price) for price in (0.0, 0.5))
    gradients = []
    for model in (free, dear):
        model(tiny_ids(), labels=tiny_ids()).loss.backward()
        gradients.append(model.method.halting.router.weight.grad)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert gradients[0].norm() > 1e-4 and (gradients[1] - gradients[0]).norm() > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("correctness", [None, 0.0, 2.0])
def test_the_loss_is_the_nats_and_the_price_of_thoughts_weighed_by_how_right_the_token_was(
    method, correctness
):
    power = {"alcot": 1.0, "ponder3": 0.0}[method] if correctness is None else correctness
    model = make(method, thought_price=0.3, correctness=correctness)
    ids = tiny_ids()
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORE
    read = model.read(model.tokens(ids))[-1]
    logprobs = model.decoder.head(read.hidden).log_softmax(-1)
    q = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    counted = targets != IGNORE
    price = 0.3 * q.exp().pow(power) * read.slot_weights[..., 1:].sum(-1)
    close(model(ids, targets=targets).loss, ((price - q) * counted).sum() / counted.sum())


def test_the_probability_that_weighs_the_price_carries_no_gradient():
    model = make("alcot", thought_price=1.0, correctness=1.0)
    ids = tiny_ids()
    read = model.read(model.tokens(ids))[-1]
    _, each = model.decoder.head(read.hidden, ids, by_row=True)
    assert not each.requires_grad
    model.method.halting.penalty(read.slot_weights.detach().requires_grad_(), each, ids).backward()
    assert model.decoder.head.weight.grad is None


def test_fewer_slots_in_use_let_the_rest_leave_at_the_last_of_them():
    model, ids = make("ponder3"), tiny_ids()
    w = model.read(model.tokens(ids), jacobi(2, 2))[-1].slot_weights
    assert w.shape[-1] == 2 and (w[..., 1] < 1).all()
    p = model.method.halting.shares(w)
    close(p.sum(-1), torch.ones_like(p[..., 0]))


def test_padding_of_a_batch_is_seen_by_nobody_and_stops_nobody():
    model, ids = make("alcot", threshold=0.8), tiny_ids(1, 5)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], dim=1)
    alive = torch.tensor([[0, 0, 3, 3, 3, 3, 3]])
    tokens = model.tokens(padded, alive=alive)._replace(positions=torch.arange(-2, 5).clamp(min=0))
    model2 = model.method.tokens(model.decoder, padded, tokens.positions)
    tokens = tokens._replace(embeds=model2.embeds)
    found = model.read(tokens, model.method.exact_schedule())[-1].hidden[:, 2:]
    close(found, model.think(ids, model.method.exact_schedule()))


@pytest.mark.parametrize("method", METHODS)
def test_measured_thoughts_are_those_that_decoding_runs(method):
    model = make(method, threshold={"alcot": 0.8, "ponder3": 0.45}[method])
    batch = tiny_ids(3, 9)
    sums = summed_loss(model, [batch], exact=True)
    _, cells = decoded(model, batch[:, :-1])
    assert sums.tokens == 24 and sum(sums.reached) == cells == round(24 * (1 + sums.thoughts))
    assert sums.reached[0] == sums.weights[0] == 24 and sums.weights[1] < sums.reached[1] < 24
    plain = summed_loss(tiny_model(**LATENT), [batch])
    assert plain.thoughts == 2 and plain.reached == (24.0, 24.0, 24.0)


@pytest.mark.parametrize("method", METHODS)
def test_decoding_costs_what_is_thought(method):
    model = make(method, threshold=0.1)
    cost = [
        inference_flops_per_token(model.config, model.thoughts, 16, reached)
        for reached in (None, [1, 1, 1], [1, 0.5, 0.25], [1, 0, 0])
    ]
    assert cost[0] == cost[1] > cost[2] > cost[3]
    one = model.method.schedule(slots=1)
    plain = schedule_cost(model.config, tiny_model().method, one, 16).forward
    router = model.method.halting.flops(model.config, 1)
    columns = 4 * model.config.num_heads * model.config.num_layers * 17 / 2  # a key is one number longer
    assert cost[3] == pytest.approx(plain + router + columns)


def test_a_router_computes_in_float32_under_autocast():
    model, ids = make("alcot", dtype=torch.float32), tiny_ids()
    with torch.autocast("cpu", torch.bfloat16):
        read = model.read(model.tokens(ids))[-1]
    assert read.slot_weights.dtype == torch.float32
