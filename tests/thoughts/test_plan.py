"""Any schedule, any method: compiled and executed it comes to the recurrence cell by cell, or it is refused."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from latentpt.thoughts import registry
from latentpt.thoughts.compile import compile_plan
from latentpt.thoughts.cost import schedule_cost
from latentpt.thoughts.plan import PlanError
from latentpt.thoughts.registry import METHODS
from latentpt.thoughts.schedule import Schedule, Sweep, by_slot, gauss_seidel, jacobi, one_pass, sequential
from latentpt.thoughts.watch import Watch
from tests.conftest import tiny_ids, tiny_model
from tests.thoughts.oracle import oracle
from tests.thoughts.toys import TOYS

LENGTH = 5
KINDS = {
    "vanilla": {"method": "vanilla"},
    "latent": {"method": "latent", "num_thoughts": 2},
    "stage": {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"},
    "pause": {"method": "pause", "num_thoughts": 1},
    "pause-stage": {"method": "pause", "num_thoughts": 2, "visibility": "stage_causal"},
    "loop": {"method": "loop", "num_thoughts": 2},
    "ponder": {"method": "ponder", "num_thoughts": 1, "cumulative": True},
    "carry-1": {"method": "carry", "num_thoughts": 0},
    "carry": {"method": "carry", "num_thoughts": 1},
    "carry-stage": {"method": "carry", "num_thoughts": 1, "visibility": "stage_causal"},
    "two_losses": {"method": "two_losses", "num_thoughts": 1},
    "inside": {"method": "inside", "num_thoughts": 1},
    "alcot": {"method": "alcot", "num_thoughts": 2},
    "alcot-stops": {"method": "alcot", "num_thoughts": 2, "threshold": 0.8},
    "ponder3": {"method": "ponder3", "num_thoughts": 2},
    "ponder3-stops": {"method": "ponder3", "num_thoughts": 2, "threshold": 0.4},
    "mid_loop": {"method": "mid_loop", "num_thoughts": 2},
    "latent-middle": {"method": "latent", "num_thoughts": 2, "span": "middle"},
    "stage-last": {"method": "latent", "num_thoughts": 1, "visibility": "stage_causal", "span": "last"},
    "smear": {"method": "smear"},
    "smear-first": {"method": "smear", "span": "first", "injection": "gate"},
    "p2n": {"method": "p2n"},
    "p2n-all": {"method": "p2n", "span": "all", "injection": "norm"},
    "dual_slot": {"method": "dual_slot", "num_thoughts": 1},
    "dual_slot-stage": {"method": "dual_slot", "num_thoughts": 1, "visibility": "stage_causal"},
    "dual_slot-stage-2": {"method": "dual_slot", "num_thoughts": 2, "visibility": "stage_causal"},
    "dual_slot-blind": {
        "method": "dual_slot",
        "num_thoughts": 2,
        "visibility": "same_slot",
        "injection": "gate",
    },
    "hybrid": {"method": "hybrid", "num_thoughts": 1},
    "hybrid-stage": {"method": "hybrid", "num_thoughts": 2, "visibility": "stage_causal", "injection": "add"},
    "lrt": {"method": "lrt"},
    "lrt-shared": {"method": "lrt", "shared_projections": True},
    "fbt": {"method": "fbt"},
    "fbt-concat": {"method": "fbt", "fusion": "concat", "match_scale": True},
    "fbt-add": {"method": "fbt", "fusion": "add"},
    "t2mlr": {"method": "t2mlr"},
    "t2mlr-all": {"method": "t2mlr", "span": [0, 3]},
}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, method in TOYS.items():
        monkeypatch.setitem(registry.METHODS, name, method)


def make(kind, family="llama", **more):
    return tiny_model(family, size={"num_layers": 3}, weights=1.5, **{**KINDS[kind], **more})


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_every_method_of_the_library_is_here():
    assert {k["method"] for k in KINDS.values()} >= set(METHODS) - {
        "latent_mixture", "ponder_hidden", "sequential_hidden_decoding", *TOYS
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_schedule_in_one_stretch_in_chunks_and_in_a_cache_is_the_recurrence(family, kind):
    model, ids = make(kind, family), tiny_ids(length=LENGTH)
    expected, exact = oracle(model, ids), model.method.exact_schedule()
    close(model.think(ids, exact), expected, 1e-11)
    close(model.think(ids, sequential(model.method.slots)), expected, 1e-11)
    for chunk in (1, 2, 3):
        close(model.think(ids, Schedule(exact.sweeps, exact.chunk or chunk)), expected, 1e-11)
    with torch.no_grad():
        for schedule in (exact, sequential(model.method.slots)):
            for state in (model.cache(2, LENGTH), model.state()):
                pieces = [model.think(piece, schedule, state) for piece in ids.split(2, dim=1)]
                close(torch.cat(pieces, dim=1), expected, 1e-11)


@st.composite
def schedules(draw, slots):
    """Any sweeps, and at the end enough of one kind over all slots; strides that mix slots included."""
    sweeps, least = [], 1
    for _ in range(draw(st.integers(0, 3))):
        least = draw(st.integers(least, slots))
        sweeps.append(Sweep(least, draw(st.integers(1, 3 * least)), draw(st.booleans())))
    stride = draw(st.sampled_from([1, slots, 2 * slots, 3 * slots]))
    enough = [Sweep(slots, stride, draw(st.booleans()))] * (LENGTH * slots)
    return Schedule((*sweeps, *enough), draw(st.sampled_from([None, 1, 2, 3])))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(KINDS)), st.integers(0, 2))
def test_any_schedule_is_refused_or_comes_to_the_recurrence(data, kind, fewer):
    """With documents, after a prefix and with fewer slots too."""
    model, ids = make(kind), tiny_ids(length=LENGTH)
    slots = model.method.slots - fewer
    assume(slots >= 1)
    schedule = data.draw(schedules(slots))
    documents, prefix = None, data.draw(st.sampled_from([0, 2]))
    if not prefix and data.draw(st.booleans()):
        documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    try:
        compile_plan(model.method.traits(slots), schedule, LENGTH)
    except PlanError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 200
        return
    state = None
    if prefix:
        state = model.state(slots)
        with torch.no_grad():
            exact = model.method.exact_schedule(slots)
            model.think(ids[:, :prefix], exact, state)
    with torch.no_grad():
        found = model.think(ids[:, prefix:], schedule, state, documents=documents)
    close(found, oracle(model, ids, slots, documents)[:, prefix:])


@pytest.mark.parametrize(
    ("sweeps", "reason"),
    [
        ((Sweep(2),), "slot 1 is fed the state of slot 0, which no earlier sweep has thought"),
        ((Sweep(2, 2), Sweep(1)), "a sweep over 1 slots follows one over 2"),
        ((Sweep(2, 3),), "stride 3 over 2 slots mixes slots unevenly; the nearest stride that does not is 4"),
    ],
)
def test_what_nobody_provides_is_refused_in_one_sentence(sweeps, reason):
    model = tiny_model(method="latent", num_thoughts=1)
    with pytest.raises(PlanError, match=reason):
        model.think(tiny_ids(), Schedule(sweeps))


def test_a_state_of_other_slots_is_refused():
    model = tiny_model(method="latent", num_thoughts=2)
    with pytest.raises(PlanError, match="a schedule of 2 slots cannot go on from a state of 3"):
        model.think(tiny_ids(), jacobi(2, 1), model.state())


def test_a_full_pass_over_a_stage_causal_model_keeps_its_visibility():
    model, ids = make("stage"), tiny_ids(length=LENGTH)
    close(model.think(ids, jacobi(3, 8)), oracle(model, ids))


def test_a_walk_before_jacobi_is_run_for_what_is_read_of_it_and_no_more():
    model = tiny_model(method="latent", num_thoughts=1)
    plan = compile_plan(model.method.traits(), Schedule((*by_slot(2).sweeps, Sweep(2), Sweep(2))), 7)
    (stretch,) = (stretch for _, stretch in plan.stretches)
    # the walk's slot 1 is neither fed to anybody nor seen
    assert [[c.slot for c in step.columns] for step in stretch.steps] == [[0], [0, 1], [0, 1]]
    cost = schedule_cost(model.config, model.method, Schedule((*by_slot(2).sweeps, Sweep(2), Sweep(2))), 7)
    assert cost.slots == 5


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", ["stage", "loop", "ponder", "latent"])
def test_chunks_with_fewer_slots_see_the_slots_there_are(kind, slots):
    model, ids = make(kind), tiny_ids(length=LENGTH)
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    for schedule in (Schedule(by_slot(slots).sweeps * 6, chunk=2), sequential(slots)):
        close(model.think(ids, schedule), oracle(model, ids, slots))
        close(model.think(ids, schedule, documents=documents), oracle(model, ids, slots, documents))


def test_a_carry_is_reset_where_a_document_begins():
    model, documents = make("carry"), torch.tensor([[0, 0, 1, 1, 1]] * 2)
    ids = tiny_ids(length=LENGTH)
    whole = model.think(ids, gauss_seidel(2, 10), documents=documents)
    close(whole[:, 2:], model.think(ids[:, 2:], gauss_seidel(2, 10)))


@pytest.mark.parametrize(
    "kind", ["carry", "inside", "dual_slot", "mid_loop", "smear", "p2n", "hybrid", "latent-middle"]
)
def test_converged_schedules_agree_in_every_gradient(kind):
    ids, gradients = tiny_ids(length=4), []
    for schedule in ("exact", "swept"):
        model = make(kind)
        slots = model.method.slots
        chosen = model.method.exact_schedule() if schedule == "exact" else gauss_seidel(slots, 9)
        model(ids, labels=ids, schedule=chosen).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize("checkpointed", ["none", "selective", "block", "pass"])
def test_repeated_use_of_a_layer_gives_the_gradients_of_unrolled_copies(checkpointed):
    model, ids = make("mid_loop", num_thoughts=1), tiny_ids()
    model.decoder.checkpoint_activations = checkpointed
    model(ids, labels=ids).loss.backward()
    plain = tiny_model(size={"num_layers": 4}, embed_scale=model.method.embed_scale)
    for copy, layer in enumerate((0, 1, 1, 2)):
        plain.decoder.blocks[copy].load_state_dict(model.decoder.blocks[layer].state_dict())
    for name in ("embedding", "norm", "head"):
        getattr(plain.decoder, name).load_state_dict(getattr(model.decoder, name).state_dict())
    plain(ids, labels=ids).loss.backward()
    copies = [[p.grad for p in block.parameters()] for block in plain.decoder.blocks]
    for ours, a, b in zip(model.decoder.blocks[1].parameters(), copies[1], copies[2], strict=True):
        close(ours.grad, a + b, 1e-12)
    for ours, a in zip(model.decoder.blocks[0].parameters(), copies[0], strict=True):
        close(ours.grad, a, 1e-12)


def test_the_loss_is_the_weighed_sum_over_the_sweeps_that_predict():
    model, ids = make("two_losses"), tiny_ids()
    first = model(ids, labels=ids, schedule=one_pass(1)).loss
    last = model(ids, labels=ids, schedule=Schedule((Sweep(1), Sweep(2), Sweep(2)))).loss
    loss = model(ids, labels=ids).loss
    close(loss, 0.25 * first + 0.75 * last, 1e-12)
    cost = schedule_cost(model.config, model.method, model.method.schedule(), 7)
    plain = schedule_cost(model.config, model.method, Schedule((Sweep(1), Sweep(2), Sweep(2))), 7)
    assert cost.forward == plain.forward + 2 * model.config.hidden_size * model.config.vocab_size


def test_gradient_flows_through_the_states_of_the_first_pass_and_not_when_it_carries_none():
    for grad in (True, False):
        model, ids = make("carry-1"), tiny_ids()
        seen = []

        class Keep(Watch):
            def ran(self, step, u, x, seen=seen):
                x.requires_grad and x.retain_grad()
                seen.append(x)

        schedule = Schedule((Sweep(1, grad=grad), Sweep(1)))
        model(ids, labels=ids, schedule=schedule, watch=Keep()).loss.backward()
        assert (seen[0].grad is not None and seen[0].grad.abs().max() > 0) == grad


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["latent", "stage", "pause", "loop"]))
@example(None, "latent")
def test_tokens_that_think_less_are_seen_less_and_predict_from_their_last_thought(data, kind):
    model, ids = make(kind), tiny_ids(length=LENGTH)
    slots = model.method.slots
    alive = torch.tensor([[1, slots, 2, 1, slots], [2, 1, slots, 1, 2]])
    if data is not None:
        numbers = st.lists(st.integers(1, slots), min_size=LENGTH, max_size=LENGTH)
        alive = torch.tensor([data.draw(numbers), data.draw(numbers)])
    expected = oracle(model, ids, alive=alive)
    exact = model.method.exact_schedule()
    with torch.no_grad():
        close(model.think(ids, sequential(slots), alive=alive), expected)
        close(model.think(ids, exact, alive=alive), expected)
        close(model.think(ids, gauss_seidel(slots, 10), alive=alive), expected)
        for state in (model.cache(2, LENGTH), model.state()):
            steps = range(LENGTH)
            found = [model.think(ids[:, t : t + 1], exact, state, alive=alive[:, t : t + 1]) for t in steps]
            close(torch.cat(found, dim=1), expected)


def test_everybody_thinking_k_slots_is_a_model_of_k_slots():
    model, ids = make("latent"), tiny_ids()
    for slots in (1, 2, 3):
        alive = torch.full(ids.shape, slots)
        close(
            model.think(ids, gauss_seidel(3, 8), alive=alive),
            model.think(ids, gauss_seidel(slots, 8)),
        )
