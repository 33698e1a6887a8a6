"""Methods that repeat a span of layers, against the published passes written down plainly."""

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.modeling.attention import Group, Part, View
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.merge import Relation
from latentpt.thoughts.config import ThoughtsConfig, layers_of
from latentpt.thoughts.cost import inference_flops_per_token, schedule_cost, training_cost
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import by_slot, gauss_seidel, jacobi, one_pass, sequential
from latentpt.thoughts.watch import Watch
from tests.conftest import tiny_ids, tiny_model

CAUSAL = View((Group(slice(None), (Part(slice(None), Relation.CAUSAL),)),))


def make(method, family="llama", layers=6, **more):
    return tiny_model(family, size={"num_layers": layers}, weights=1.5, method=method, **more)


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


class Plainly:
    """A model's parts over whole sequences: prefix, span F over causal sequences of cells, suffix."""

    def __init__(self, model, ids):
        self.model, self.decoder = model, model.decoder
        self.start, self.stop = model.method.span
        tokens = model.tokens(ids)
        self.positions = tokens.positions
        self.x = self.run(tokens.embeds, 0, self.start)

    def run(self, x, first, stop):
        angles = self.decoder.angles(self.positions)
        return self.decoder.run(x, angles, [CAUSAL] * (stop - first), first).x

    def span(self, *slots):
        """F over the slots of every position, interleaved, each [B, L, 1, d]."""
        return self.run(torch.cat(slots, dim=2), self.start, self.stop).split(1, dim=2)

    def logits(self, x):
        x = self.run(x, self.stop, len(self.decoder.blocks))
        return self.decoder.head(self.decoder.norm(x))[:, :, 0]


def shift(h):
    return torch.nn.functional.pad(h[:, :-1], (0, 0, 0, 0, 1, 0))


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_p2n_runs_the_published_passes(family, passes):
    model, ids = make("p2n", family, refinements=passes), tiny_ids()
    plain = Plainly(model, ids)
    (h,) = plain.span(plain.x)
    for _ in range(passes):
        (h,) = plain.span(plain.x + shift(h))
    close(model(ids).logits, plain.logits(h))


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_dual_slot_runs_the_published_passes(family, passes):
    model, ids = make("dual_slot", family, num_thoughts=1, refinements=passes - 1), tiny_ids()
    plain = Plainly(model, ids)
    (h,) = plain.span(plain.x)
    for _ in range(passes):
        h, y = plain.span(plain.x, plain.x + shift(h))
    close(model(ids).logits, plain.logits(y))


def test_smear_adds_the_stream_of_the_token_before_where_the_span_begins(family):
    model, ids = make("smear", family), tiny_ids()
    plain = Plainly(model, ids)
    close(model(ids).logits, plain.logits(*plain.span(plain.x + shift(plain.x))))
    assert model.method.schedule() == one_pass(1)


def test_mid_loop_runs_the_middle_third_again(family):
    model, ids = make("mid_loop", family, num_thoughts=2), tiny_ids()
    plain = Plainly(model, ids)
    (h,) = plain.span(*plain.span(*plain.span(plain.x)))
    close(model(ids).logits, plain.logits(h))


def test_dual_slot_whose_predictions_are_blind_to_latents_is_p2n_with_as_many_passes(family):
    blind = make("dual_slot", family, num_thoughts=2, visibility="same_slot")
    p2n = make("p2n", family, refinements=2)
    p2n.load_state_dict(blind.state_dict())
    close(blind(tiny_ids()).logits, p2n(tiny_ids()).logits)


# ------------------------------------------------------------------------------------------------------ exactness, cost


def test_dual_slot_under_stage_causal_visibility_is_exact_in_two_passes_of_the_span(family):
    model, ids = make("dual_slot", family, num_thoughts=1, visibility="stage_causal"), tiny_ids()
    assert model.method.schedule() == model.method.exact_schedule() == by_slot(2)
    close(model(ids).logits, model(ids, schedule=sequential(2)).logits)
    runs = []
    model.decoder.blocks[2].register_forward_hook(lambda m, i, o: runs.append(tuple(o[0].shape[1:3])))
    model(ids)
    assert runs == [(7, 1), (7, 1)]


@pytest.mark.parametrize("visibility", ["stage_causal", "causal", "same_slot"])
def test_dual_slot_decodes_both_slots_of_a_token_in_one_pass_of_four_thirds(visibility):
    model = make("dual_slot", num_thoughts=1, visibility=visibility)
    assert schedule_cost(model.config, model.method, model.method.exact_schedule(), 8).slots == 4 / 3
    cache, runs = model.cache(2, 5), []
    model.decoder.blocks[2].register_forward_hook(lambda m, i, o: runs.append(i[0].shape[2]))
    with torch.no_grad():
        for column in tiny_ids(length=5).split(1, dim=1):
            model.think(column, model.method.exact_schedule(), cache)
    assert runs == [2] * 5


@pytest.mark.parametrize("method", ["smear", "p2n"])
def test_what_thinks_once_a_token_decodes_for_the_cost_of_the_plain_decoder(method):
    model, vanilla = make(method), make("vanilla")
    ours, plain = (inference_flops_per_token(m.config, m.thoughts, 16) for m in (model, vanilla))
    assert ours == plain


@pytest.mark.parametrize(
    ("method", "more", "share"),
    [
        ("p2n", {"refinements": 3}, 1 + 3 / 3),
        ("dual_slot", {"num_thoughts": 1, "refinements": 1}, 1 + 4 / 3),
        ("dual_slot", {"num_thoughts": 1, "visibility": "stage_causal"}, 4 / 3),
        ("mid_loop", {"num_thoughts": 1}, 4 / 3),
        ("latent", {"num_thoughts": 1, "visibility": "stage_causal", "span": "middle"}, 4 / 3),
        ("smear", {}, 1),
    ],
)
def test_training_costs_the_published_share_of_layers(method, more, share):
    model = make(method, **more)
    assert training_cost(model.config, model.thoughts, 8).slots == pytest.approx(share)


# ------------------------------------------------------------------------------------------------------ gradients


class First(Watch):
    """Keeps the first streams that leave the span."""

    def __init__(self, model):
        self.stop, self.x = model.method.span[1], None

    def ran(self, step, u, x):
        if self.x is None and step.layers[1] == self.stop:
            self.x = x
            x.requires_grad and x.retain_grad()


@pytest.mark.parametrize("method", ["p2n", "dual_slot", "hybrid"])
def test_the_loss_reaches_the_states_of_the_first_pass_unless_it_is_truncated(method):
    for passes in (None, 1):
        thoughts = {"num_thoughts": int(method != "p2n"), "refinements": 2, "bptt_passes": passes}
        model, ids = make(method, **thoughts), tiny_ids()
        first = First(model)
        model(ids, labels=ids, watch=first).loss.backward()
        assert (first.x.grad is not None and first.x.grad.abs().max() > 0) == (passes is None)


@pytest.mark.parametrize("method", ["dual_slot", "hybrid"])
def test_under_stage_causal_visibility_gauss_seidel_and_jacobi_agree_in_every_gradient(method):
    gradients = []
    for schedule in (gauss_seidel(2, 9), jacobi(2, 18)):
        model, ids = make(method, num_thoughts=1, visibility="stage_causal"), tiny_ids(length=4)
        model(ids, labels=ids, schedule=schedule).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b, 1e-9)


# ------------------------------------------------------------------------------------------------------ switched on late


def fresh(method, **thoughts):
    size = ModelConfig(family="llama", vocab_size=37, hidden_size=16, num_layers=6, num_heads=4)
    model = LanguageModel(size, ThoughtsConfig(method=method, **thoughts))
    model.initialize(0)
    return model


@pytest.mark.parametrize(
    ("gated", "plain"),
    [
        ({"method": "p2n"}, {"method": "vanilla"}),
        ({"method": "smear"}, {"method": "vanilla"}),
        ({"method": "dual_slot", "num_thoughts": 1, "visibility": "same_slot"}, {"method": "vanilla"}),
        (
            {"method": "hybrid", "num_thoughts": 1, "solver": "gauss_seidel", "refinements": 1},
            {"method": "latent", "num_thoughts": 1, "solver": "gauss_seidel", "refinements": 1},
        ),
    ],
)
def test_with_a_gate_the_switch_changes_nothing_bit_by_bit(gated, plain):
    ids = tiny_ids()
    model = fresh(**gated, injection="gate")
    assert torch.equal(model(ids).logits, fresh(**plain)(ids).logits)
    model(ids, labels=ids).loss.backward()
    assert model.method.shift.gate.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("method", "before"), [("p2n", {"refinements": 0}), ("dual_slot", {}), ("mid_loop", {})]
)
def test_a_curriculum_switches_on_late_from_a_vanilla_model_bit_by_bit(method, before):
    thoughts = {"num_thoughts": int(method != "p2n"), "refinements": 2}
    late = ThoughtsConfig(method=method, **thoughts, curriculum=[{"until_step": 0.5, **before}]).over(20)
    model, ids = fresh(method, **late.model_dump(exclude={"method"})), tiny_ids()
    schedules = [model.training_schedule(0, step) for step in (0, 9, 10, 19)]
    vanilla = fresh("vanilla")(ids).logits
    for schedule in schedules[:2]:
        assert torch.equal(model(ids, schedule=schedule).logits, vanilla)
    assert schedules[2] == schedules[3] == model.method.schedule() != schedules[0]
    assert model.method.schedule_at(9) == schedules[0] and model.method.schedule_at(10) == schedules[2]


def test_a_share_of_the_training_costs_what_that_many_steps_cost():
    model = fresh("mid_loop", num_thoughts=1)
    share, steps = (
        ThoughtsConfig(method="mid_loop", num_thoughts=1, curriculum=[{"until_step": end}])
        for end in (0.35, 70)
    )
    assert training_cost(model.config, share, 8, 200) == training_cost(model.config, steps, 8, 200)
    assert training_cost(model.config, share, 8, 200).slots == pytest.approx(0.35 + 0.65 * 4 / 3)


@pytest.mark.parametrize("ends", [[0.5, 100], [0.5, 0.4], [0], [1.5]])
def test_a_curriculum_of_mixed_or_shrinking_ends_is_refused(ends):
    with pytest.raises(ValueError, match=r"thoughts\.curriculum needs"):
        ThoughtsConfig(method="latent", num_thoughts=1, curriculum=[{"until_step": end} for end in ends])


# ------------------------------------------------------------------------------------------------------ spans


@pytest.mark.parametrize(
    ("layers", "middle"), [(1, (0, 1)), (2, (0, 2)), (3, (1, 2)), (4, (1, 3)), (6, (2, 4)), (12, (4, 8))]
)
def test_the_middle_is_what_two_outer_thirds_leave(layers, middle):
    assert layers_of("middle", layers) == middle and layers_of("all", layers) == (0, layers)


@pytest.mark.parametrize(
    ("span", "near"), [((0, 7), r"\[0, 6\]"), ((3, 3), r"\[3, 4\]"), ((-1, 2), r"\[0, 2\]")]
)
def test_a_span_that_the_model_does_not_have_is_refused(span, near):
    with pytest.raises(ConfigError, match=f"is no span of 6 layers; the nearest is {near}"):
        layers_of(span, 6)


@pytest.mark.parametrize("method", ["vanilla", "smear", "p2n"])
def test_a_method_without_latent_slots_refuses_thoughts(method):
    with pytest.raises((ConfigError, ValueError), match=f"thoughts.method = {method}, which has no"):
        tiny_model(method=method, num_thoughts=1)


def test_a_span_of_all_layers_is_the_method_itself(family):
    ids = tiny_ids()
    for method in ("latent", "loop"):
        assert torch.equal(
            make(method, family, num_thoughts=1)(ids).logits,
            make(method, family, num_thoughts=1, span=[0, 6])(ids).logits,
        )
    middle = make("loop", family, num_thoughts=1, span="middle")
    assert torch.equal(middle(ids).logits, make("mid_loop", family, num_thoughts=1)(ids).logits)
