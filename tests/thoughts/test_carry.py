"""A state carried from token to token: lrt, fbt, t2mlr. What they compute, what they start as, what gradient flows."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import rms_norm

from latentpt.config import ConfigError
from latentpt.generation.decode import Session
from latentpt.thoughts.chance import make_chance
from latentpt.thoughts.cost import schedule_cost, training_cost
from latentpt.thoughts.measure import summed_loss
from latentpt.thoughts.method import Tokens
from latentpt.thoughts.schedule import Schedule, Sweep, jacobi, one_pass, sequential, strided
from latentpt.thoughts.state import Before
from latentpt.thoughts.watch import Watch
from tests.conftest import tiny_ids, tiny_model

KINDS = {
    "lrt": {"method": "lrt"},
    "lrt-shared": {"method": "lrt", "shared_projections": True},
    "fbt": {"method": "fbt"},
    "fbt-concat": {"method": "fbt", "fusion": "concat"},
    "fbt-add": {"method": "fbt", "fusion": "add"},
    "t2mlr": {"method": "t2mlr"},
}
LENGTH = 7


def make(kind, family="llama", **more):
    return tiny_model(family, size={"num_layers": 3}, **{**KINDS[kind], **more})


def fresh(kind, family="llama", dtype=torch.float64, **more):
    """As a training begins: gates as they start."""
    model = make(kind, family, dtype=dtype, **more)
    model.method.initialize(0)
    return model


def vanilla_of(model, family="llama"):
    """A plain decoder with the same weights."""
    plain = tiny_model(family, size={"num_layers": 3}, embed_scale=model.method.embed_scale)
    plain.decoder.load_state_dict(model.decoder.state_dict())
    return plain.to(next(model.parameters()).dtype)


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# ------------------------------------------------------------------------------------------ one recurrence


@pytest.mark.parametrize("kind", KINDS)
def test_enough_sweeps_of_every_solver_equal_sequential_and_cached_decoding(family, kind):
    model, ids = make(kind, family), tiny_ids(length=LENGTH)
    with torch.no_grad():
        exact = model.think(ids, sequential(1))
        session = Session(model, *ids.shape)
        close(torch.stack([session.step(column) for column in ids.unbind(1)], dim=1), exact)
        close(model.think(ids, jacobi(1, LENGTH - 1)), exact)
        close(model.think(ids, strided(1, LENGTH, 1)), exact)
        close(model.think(ids, Schedule((Sweep(1, stride=LENGTH),))), exact)
        close(model.think(ids, strided(1, 2, LENGTH)), exact)
        close(model.think(ids, Schedule(jacobi(1, 3).sweeps, chunk=2)), exact)
        assert (model.think(ids, one_pass(1)) - exact).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_k_refinements_are_exact_for_the_first_k_positions_and_for_no_more(kind):
    model, ids = make(kind), tiny_ids(length=LENGTH)
    exact = model.think(ids, sequential(1))
    for k in range(1, 4):
        found = model.think(ids, jacobi(1, k))
        close(found[:, : k + 1], exact[:, : k + 1])
        assert (found[:, k + 1] - exact[:, k + 1]).abs().max() > 1e-9


def test_the_sanity_mode_of_lrt_with_no_memory_anywhere_is_its_first_pass():
    class NoMemory(Watch):
        def carried(self, step, column, before):
            return Before(before.inputs, torch.zeros_like(before.states), before.known)

    for kind in ("lrt", "lrt-shared"):
        model, ids = make(kind), tiny_ids(length=LENGTH)
        close(model.think(ids, sequential(1), watch=NoMemory()), model.think(ids, one_pass(1)))
        assert (model.think(ids, sequential(1)) - model.think(ids, one_pass(1))).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_carried_over_the_beginning_of_a_document(kind):
    model, ids = make(kind), tiny_ids(length=LENGTH)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 2, 2]])
    schedule = strided(1, LENGTH, 1)
    whole = model.think(ids, schedule, documents=documents)
    close(whole[0, 3:], model.think(ids[:1, 3:], schedule)[0])
    close(whole[1, 1:5], model.think(ids[1:, 1:5], schedule)[0])
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 37
    close(model.think(changed, schedule, documents=documents)[0, 3:], whole[0, 3:], 0)
    assert (model.think(ids, schedule)[0, 3:] - whole[0, 3:]).abs().max() > 1e-6


# ------------------------------------------------------------------------------------------ the plain decoder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "t2mlr"])
def test_the_first_pass_is_the_plain_decoder_bit_by_bit_at_the_start(family, kind):
    model, ids = fresh(kind, family, torch.float32), tiny_ids(length=LENGTH)
    assert torch.equal(model.think(ids, one_pass(1)), vanilla_of(model, family).think(ids))


@pytest.mark.parametrize(
    ("kind", "more"), [("t2mlr", {}), ("lrt", {"zero_init": True}), ("fbt-add", {"zero_init": True})]
)
@pytest.mark.parametrize("refinements", [0, 3])
def test_what_starts_at_zero_is_the_plain_decoder_bit_by_bit_in_every_sweep(family, kind, more, refinements):
    model, ids = fresh(kind, family, torch.float32, **more), tiny_ids(length=LENGTH)
    plain = vanilla_of(model, family)
    assert torch.equal(model.think(ids, jacobi(1, refinements)), plain.think(ids))
    with torch.no_grad():
        there, here = (Session(m, *ids.shape).extend(ids) for m in (plain, model))
    close(here, there, 1e-5)  # decoding goes token by token there, and by one product here
    model(ids, labels=ids).loss.backward()
    entering = [
        p
        for name, p in model.method.named_parameters()
        if "project" in name or "rate" in name or "value" in name
    ]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in entering)  # and it can leave zero


# ------------------------------------------------------------------------------------------ the equations


def rms(x):
    return rms_norm(x, x.shape[-1:], eps=1e-6)


def test_fbt_fuses_as_published():
    e, h = torch.randn(2, 2, 5, 1, 16, dtype=torch.float64)
    tokens = Tokens(torch.zeros(2, 5, dtype=torch.long), e, None, torch.arange(5))
    known = torch.ones(2, 5, 1, 1, dtype=torch.bool)
    known[:, 0] = False
    for kind, expected in (
        ("fbt", lambda m: rms((h @ m.value.weight.T) * torch.sigmoid(rms(e) @ m.gate.weight.T))),
        ("fbt-concat", lambda m: rms(torch.cat([rms(h), rms(e)], -1) @ m.value.weight.T)),
        ("fbt-add", lambda m: e + h @ m.value.weight.T),
    ):
        model = make(kind)
        u = model.method.inject(model.decoder, tokens, range(1), Before(e, h, known))
        close(u[:, 1:], expected(model.method)[:, 1:])
        assert torch.equal(u[:, 0], e[:, 0])
    model = make("fbt", match_scale=True)
    u = model.method.inject(model.decoder, tokens, range(1), Before(e, h, known))
    close(u.square().mean(-1), e.square().mean(-1), 1e-4)


def test_t2mlr_mixes_and_sums_as_published():
    model = make("t2mlr")
    method, (x, state, before) = model.method, torch.randn(3, 2, 5, 1, 16, dtype=torch.float64)
    tokens = Tokens(torch.zeros(2, 5, dtype=torch.long), x, None, torch.arange(5))
    r = before @ method.project.weight.T
    c = torch.cat([x, r], -1)
    expected = x + method.state_rate.tanh() * method.state_gate(c).sigmoid() * r
    expected = expected + method.stream_rate.tanh() * method.stream_gate(c).sigmoid() * x
    known = torch.ones(2, 5, 1, 1, dtype=torch.bool)
    close(method.inject(model.decoder, tokens, range(1), Before(x, before, known)), expected)
    total = state + before
    close(method.update(state, before), total / total.square().mean(-1, keepdim=True).sqrt(), 1e-6)
    assert method.update(1e3 * state, None).square().mean().sqrt() > 100  # scaled by no less than a fifth
    assert method.update(1e-3 * state, None).square().mean().sqrt() < 0.01  # and by no more than five
    assert method.span == (1, 2)


def test_lrt_gates_keys_and_values_and_adds_to_the_stream_as_published():
    model = make("lrt")
    layer = model.method.injections[1]
    nn.init.normal_(layer.gate.weight)
    x, m = torch.randn(2, 2, 5, 1, 16, dtype=torch.float64)
    k, v = torch.randn(2, 2, 5, 1, 2, 4, dtype=torch.float64)
    gates = 2 * torch.sigmoid(x @ layer.gate.weight.T)
    a, b = (m @ layer.project.weight.T).unflatten(-1, (4, 4)).split(2, dim=-2)
    found_k, found_v = layer.keys_values(x, k, v, m)
    close(found_k, gates[..., :2, None] * k + gates[..., 2:, None] * a)
    close(found_v, gates[..., :2, None] * v + gates[..., 2:, None] * b)
    close(layer.residual(x, m), x + layer.rate * m)


def test_first_values_are_those_published():
    lrt, fbt, t2mlr = (fresh(kind).method for kind in ("lrt", "fbt", "t2mlr"))
    for layer in lrt.injections:
        assert layer.rate.item() == pytest.approx(0.1) and not layer.gate.weight.any()
        assert 0.9 < layer.project.weight.abs().max() / math.sqrt(3 / 16) <= 1
    assert 0.8 < fbt.value.weight.std() * 4 < 1.2
    assert not t2mlr.state_rate.any() and not t2mlr.stream_rate.any()
    assert 0.9 < t2mlr.state_gate.weight.abs().max() / math.sqrt(2 / 16) <= 1
    assert 0.5 < t2mlr.state_gate.bias.abs().max() * math.sqrt(32) <= 1
    shared = fresh("lrt-shared").method.injections
    assert all(layer.project is shared[0].project for layer in shared)


def test_no_method_here_brings_anything_that_a_plain_decoder_could_have_too():
    """Value embeddings at more layers were the published LRT's confound: parameters are those of the injection alone."""
    for kind in KINDS:
        model = make(kind)
        plain = vanilla_of(model)
        own = {name for name, _ in model.named_parameters() if not name.startswith("method.")}
        assert own == {name for name, _ in plain.named_parameters()}
        assert all(p.shape[0] != 37 for p in model.method.parameters())  # nothing is indexed by the token


# ------------------------------------------------------------------------------------------ losses and gradients


def test_the_loss_of_lrt_is_the_mean_over_sets():
    ids = tiny_ids(length=8)
    model = make("lrt", solver="strided", stride=2, refinements=1)
    assert [s.weight for s in model.method.schedule().sweeps] == [1 / 3, 2 / 3]
    seen = []
    for sweeps in ((Sweep(1),), strided(1, 2, 1).sweeps):
        seen.append(model(ids, targets=ids, schedule=Schedule(sweeps)).loss)
    close(model(ids, targets=ids).loss, seen[0] / 3 + 2 * seen[1] / 3)
    refined = make("lrt", refinements=3)
    assert [s.weight for s in refined.method.schedule().sweeps] == [0.25] * 4
    weighed = make("lrt", refinements=3, loss_weights=(0.1, 0.3, 0.6))
    assert [s.weight for s in weighed.method.schedule().sweeps] == pytest.approx([0, 0.1, 0.3, 0.6])
    assert [s.weight for s in weighed.method.schedule(1).sweeps] == pytest.approx([1 / 3, 2 / 3])


def test_the_loss_of_fbt_is_the_first_pass_plus_the_mean_of_the_others_and_that_of_t2mlr_the_last():
    ids = tiny_ids()
    model = make("fbt", refinements=2)
    alone = [model(ids, targets=ids, schedule=jacobi(1, k)).loss for k in range(3)]
    close(model(ids, targets=ids).loss, alone[0] + (alone[1] + alone[2]) / 2)
    assert model.method.schedule(0).sweeps == (Sweep(1, weight=1.0),)
    assert make("t2mlr", refinements=2).method.schedule() == jacobi(1, 2)


class Keep(Watch):
    """Keeps the streams of every step, and their gradients."""

    def __init__(self):
        self.streams = []

    def ran(self, step, u, x):
        if x.requires_grad:
            x.retain_grad()
        self.streams.append(x)


@pytest.mark.parametrize("solver", ["jacobi", "strided"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_sets_loss_reaches_the_first_passs_states_unless_they_are_detached(kind, solver):
    for detach in (False, True):
        model, ids, keep = make(kind, detach=detach), tiny_ids(), Keep()
        schedule = (jacobi(1, 1) if solver == "jacobi" else strided(1, 2, 1)).weighed([1.0])
        model(ids, labels=ids, schedule=schedule, watch=keep).loss.backward()
        first = keep.streams[1 if model.method.span[0] else 0]  # after the prefix
        assert (first.grad is None or not first.grad.any()) == detach


def test_gradient_is_truncated_to_the_last_sweeps_and_the_prefix_keeps_its_own():
    model, ids, keep = make("t2mlr", refinements=4, bptt_passes=2), tiny_ids(), Keep()
    schedule = model.method.schedule()
    assert [sweep.grad for sweep in schedule.sweeps] == [False, False, False, True, True]
    model(ids, labels=ids, watch=keep).loss.backward()
    assert [x.requires_grad for x in keep.streams] == [True, False, False, False, True, True, True]
    assert all(p.grad.any() for p in model.decoder.blocks[0].mlp.parameters())


def test_layers_outside_the_span_run_once_whatever_the_number_of_sweeps():
    model, ids = make("t2mlr", refinements=5), tiny_ids()
    runs = [0, 0, 0]
    for index, block in enumerate(model.decoder.blocks):
        block.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    model(ids)
    assert runs == [1, 6, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients_and_nothing_stays_between_calls(kind):
    """States live in the plan, not in modules: a published wrapper keeps them, and a recomputed block may read stale ones."""
    ids, gradients = tiny_ids(), []
    for checkpointed, calls in ((False, 1), (True, 1), (True, 2)):
        model = make(kind, refinements=2)
        model.decoder.checkpoint_activations = checkpointed
        for call in range(calls):
            model.zero_grad()
            model(ids if call == calls - 1 else ids.flip(0, 1), labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for others in gradients[1:]:
        for a, b in zip(gradients[0], others, strict=True):
            close(a, b, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_loss_is_that_of_decoding_with_the_memory_and_not_without(kind):
    model, batch = make(kind), tiny_ids(2, LENGTH)
    session, nats = Session(model, 2, LENGTH), 0.0
    for column, target in zip(batch.unbind(1)[:-1], batch.unbind(1)[1:], strict=True):
        logits = model.decoder.head(session.step(column))
        nats += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
    measured = summed_loss(model, [batch], exact=True).nats
    assert measured == pytest.approx(nats, abs=1e-9)
    without = summed_loss(model, [batch], schedule=one_pass(1)).nats
    assert abs(measured - without) > 1e-3


# ------------------------------------------------------------------------------------------ random numbers


def test_the_number_of_passes_is_drawn_with_the_probabilities_given():
    model = make("fbt", refinements=(0, 2), draw=(0.75, 0.22, 0.03))
    drawn = [len(model.training_schedule(5, step).sweeps) for step in range(2000)]
    for passes, share in ((1, 0.75), (2, 0.22), (3, 0.03)):
        assert abs(drawn.count(passes) / 2000 - share) < 0.03
    assert drawn == [len(model.training_schedule(5, step).sweeps) for step in range(2000)]
    one, two, three = (
        schedule_cost(model.config, model.method, model.method.schedule(k), 8).total for k in (0, 1, 2)
    )
    expected = 0.75 * one + 0.22 * two + 0.03 * three
    assert training_cost(model.config, model.thoughts, 8).total == pytest.approx(expected)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"draw": (0.5, 0.5)}, "thoughts.draw has 2 numbers, but there are 3 refinements from 0 to 2"),
        ({"draw": (0.0, 0.0, 0.0)}, "thoughts.draw needs a number above 0"),
        ({"loss_weights": (1.0, 0.0)}, "thoughts.loss_weights needs a last number above 0"),
        ({"noise": -0.1}, "noise\n  Input should be greater than or equal to 0"),
        ({"num_thoughts": 1}, "thoughts.method = fbt, which has no latent slots; the nearest number is 0"),
    ],
)
def test_values_that_mean_nothing_are_refused_in_one_sentence(more, reason):
    with pytest.raises((ValueError, ConfigError), match=reason):
        make("fbt", refinements=(0, 2), **more)


class Inputs(Watch):
    """Keeps what cells read, sweep by sweep."""

    def __init__(self):
        self.seen = []

    def ran(self, step, u, x):
        self.seen.append(u.detach()[:, :, 0])


def inputs(model, ids, schedule, documents=None):
    watch = Inputs()
    model(ids, labels=ids, schedule=schedule, watch=watch, documents=documents)
    return watch.seen


def drawn(model, seed=3, passes=3):
    return next(s for step in range(1000) if len((s := model.training_schedule(seed, step)).sweeps) == passes)


def test_noise_and_plain_prefixes_are_those_of_the_seed_the_step_and_the_text_wherever_it_lies():
    model = make("fbt", refinements=2)
    ids = tiny_ids(4, 9)
    whole = inputs(model, ids, model.training_schedule(3, 7))
    apart = inputs(model, ids[2:], model.training_schedule(3, 7))
    torch.manual_seed(1)
    again = inputs(model, ids, model.training_schedule(3, 7))
    other = inputs(model, ids, model.training_schedule(3, 8))
    for sweep in range(3):
        assert torch.equal(whole[sweep], again[sweep])
        close(whole[sweep][2:], apart[sweep], 1e-12)
    assert (whole[1] - other[1]).abs().max() > 1e-3 and torch.equal(whole[0], other[0])
    evaluated = model(ids).logits
    assert torch.equal(evaluated, model(ids).logits)  # no noise outside of training


def test_a_random_share_of_each_document_stays_plain_and_its_first_token_always():
    model = make("fbt", refinements=(2, 2))
    ids = tiny_ids(200, 12)
    documents = torch.zeros_like(ids)
    documents[:, 8:] = 1
    plain = inputs(model, ids, model.training_schedule(0, 0), documents)
    for length, part in ((8, slice(0, 8)), (4, slice(8, 12))):
        stays = [(sweep[:, part] == plain[0][:, part]).all(-1) for sweep in plain[1:]]
        for sweep in stays:
            assert sweep[:, 0].all() and bool((sweep[:, 1:].int().diff(dim=1) <= 0).all())  # a prefix
            share = sweep.sum(1).float() / length
            assert (
                share.min() == 1 / length
                and share.max() == 1
                and abs(share.mean() - 0.5 - 0.5 / length) < 0.08
            )
        assert not torch.equal(*stays)  # drawn anew in every pass
    everything = inputs(
        make("fbt", refinements=(2, 2), plain_prefix=False), ids, model.training_schedule(0, 0)
    )
    assert not (everything[1] == everything[0]).all(-1)[:, 1:].any()


def test_noise_is_uniform_of_the_width_given_and_tells_nothing_of_later_tokens():
    ids = tiny_ids(64, 32)
    chance = make_chance(12345, ids, torch.arange(32))
    values = chance.of(1).uniform(48)
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.003 and abs(values.var() - 1 / 12) < 0.002
    flat = values.flatten(0, 1)
    correlations = torch.corrcoef(flat.T) - torch.eye(48)
    assert correlations.abs().max() < 0.1 and torch.corrcoef(flat[:64]).fill_diagonal_(0).abs().max() < 0.7
    later = ids.clone()
    later[:, 20:] = (later[:, 20:] + 1) % 37
    same = make_chance(12345, later, torch.arange(32)).of(1).uniform(48) == values
    assert same[:, :20].all() and not same[:, 20:].all(-1).any()


# ------------------------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_costs_one_pass_in_decoding(kind):
    model = make(kind)
    assert schedule_cost(model.config, model.method, model.method.exact_schedule(), 8).slots == pytest.approx(
        1
    )
    session, runs = Session(model, 2, 3), []
    for block in model.decoder.blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    for column in tiny_ids(2, 3).unbind(1):
        session.step(column)
    assert len(runs) == 3 * 3


def test_training_costs_the_passes_that_the_schedules_say():
    size = {"num_layers": 6, "hidden_size": 512, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 2048}

    def passes(**thoughts):
        model = tiny_model(size=size, weights=1.0, dtype=torch.float32, **thoughts)
        return schedule_cost(model.config, model.method, model.method.schedule(), 64).slots

    assert passes(method="lrt", solver="strided", stride=2, refinements=1) == 2
    assert passes(method="lrt", refinements=3) == 4
    assert passes(method="fbt", refinements=(0, 2)) == 3
    assert passes(method="t2mlr", refinements=15, bptt_passes=5) == pytest.approx(4 / 6 + 16 * 2 / 6)
