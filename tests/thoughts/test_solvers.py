"""What the schedules promise, in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentpt.thoughts.residuals import Residuals
from latentpt.thoughts.schedule import (
    Schedule,
    Sweep,
    by_slot,
    gauss_seidel,
    jacobi,
    one_pass,
    sequential,
    strided,
)
from latentpt.thoughts.watch import Watch
from tests.conftest import VISIBLE, thinking, tiny_ids, tiny_model


def hidden(model, ids, schedule=None):
    return model.think(ids, schedule)


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("thoughts", [1, 2, 3])
def test_jacobi_with_enough_refinements_equals_sequential(family, thoughts):
    model = tiny_model(family, method="latent", num_thoughts=thoughts)
    ids, slots = tiny_ids(length=5), thoughts + 1
    exact = hidden(model, ids, sequential(slots))
    close(hidden(model, ids, jacobi(slots, 5 * thoughts)), exact)
    assert (hidden(model, ids, jacobi(slots, 1)) - exact).abs().max() > 1e-6


@pytest.mark.parametrize("thoughts", [1, 2, 3])
def test_gauss_seidel_with_enough_sweeps_equals_sequential(family, thoughts):
    model = tiny_model(family, method="latent", num_thoughts=thoughts)
    ids, slots = tiny_ids(length=5), thoughts + 1
    exact = hidden(model, ids, sequential(slots))
    close(hidden(model, ids, gauss_seidel(slots, 5)), exact)
    assert (hidden(model, ids, gauss_seidel(slots, 2)) - exact).abs().max() > 1e-6


@pytest.mark.parametrize("thoughts", [1, 2])
def test_one_gauss_seidel_sweep_is_the_stage_causal_model(thoughts):
    paper = tiny_model(method="latent", num_thoughts=thoughts)
    staged = tiny_model(method="latent", num_thoughts=thoughts, visibility="stage_causal")
    ids = tiny_ids()
    close(hidden(paper, ids, gauss_seidel(thoughts + 1, 1)), hidden(staged, ids), atol=0)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_strided_with_enough_sweeps_equals_sequential_and_one_sweep_of_all_suffices(family, every):
    model = tiny_model(family, method="latent", num_thoughts=2)
    ids = tiny_ids(length=7)
    exact = hidden(model, ids, sequential(3))
    close(hidden(model, ids, strided(3, every, 7)), exact)
    close(hidden(model, ids, strided(3, 7, 1)), exact)


def test_a_stage_causal_model_is_exact_in_any_strided_sweep_after_the_first():
    model = tiny_model(method="latent", num_thoughts=2, visibility="stage_causal")
    ids = tiny_ids(length=7)
    close(hidden(model, ids, strided(3, 3, 1)), hidden(model, ids))


def test_gauss_seidel_beats_jacobi_at_equal_cost():
    model = tiny_model(method="latent", num_thoughts=3, weights=1.0)
    ids = tiny_ids(length=16)
    exact = hidden(model, ids, sequential(4))
    swept, refined = (
        (hidden(model, ids, schedule) - exact).norm() for schedule in (gauss_seidel(4, 3), jacobi(4, 1))
    )
    assert gauss_seidel(4, 3).passes == 12 and jacobi(4, 1).passes == 14
    assert swept < 0.5 * refined


SOLVERS = {
    "jacobi": {}, "gauss_seidel": {"solver": "gauss_seidel"}, "strided": {"solver": "strided", "stride": 3},
    "chunked": {"solver": "gauss_seidel", "chunk": 3}, "sequential": {"solver": "sequential"},
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_converged_solvers_agree_in_every_gradient(solver):
    ids = tiny_ids(length=4)
    gradients = []
    for options in ({"solver": "sequential"}, {**SOLVERS[solver], "refinements": 8}):
        model = tiny_model(method="latent", num_thoughts=2, **options)
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize("thoughts", [1, 2, 3])
def test_stage_causal_in_one_sweep_equals_its_own_sequential_decoding(family, thoughts):
    model = tiny_model(family, method="latent", num_thoughts=thoughts, visibility="stage_causal")
    ids, slots = tiny_ids(length=6), thoughts + 1
    assert model.method.schedule() == by_slot(slots)
    close(hidden(model, ids), hidden(model, ids, sequential(slots)))


def test_stage_causal_slots_do_not_see_later_slots_of_earlier_positions():
    exact, staged = (
        tiny_model(method="latent", num_thoughts=2, visibility=v) for v in ("causal", "stage_causal")
    )
    ids = tiny_ids()
    assert (hidden(exact, ids, sequential(3)) - hidden(staged, ids)).abs().max() > 1e-3


@pytest.mark.parametrize("visibility", ["causal", "stage_causal"])
def test_any_chunking_of_an_exact_solver_is_exact(visibility):
    model = tiny_model(method="latent", num_thoughts=2, visibility=visibility)
    ids = tiny_ids(length=7)
    exact = hidden(model, ids, sequential(3))
    sweeps = by_slot(3).sweeps if visibility == "stage_causal" else jacobi(3, 14).sweeps
    for chunk in (2, 3, 7):
        close(hidden(model, ids, Schedule(sweeps, chunk)), exact)


def test_no_thoughts_of_any_method_equal_vanilla(family):
    from latentpt.thoughts.registry import METHODS

    ids = tiny_ids()
    vanilla = tiny_model(family, embed_scale=2.0)
    for name, kind in METHODS.items():
        if kind.carry or name == "smear":
            continue
        model = tiny_model(family, method=name, num_thoughts=int(name != "vanilla"), embed_scale=2.0)
        model.decoder.load_state_dict(vanilla.decoder.state_dict())
        schedule = model.method.schedule(slots=1)
        torch.testing.assert_close(
            model(ids, labels=ids, schedule=schedule), vanilla(ids, labels=ids), rtol=0, atol=0
        )
        assert schedule == one_pass(1)


@pytest.mark.parametrize("visibility", ["causal", "stage_causal"])
def test_no_position_sees_the_future(family, visibility):
    model = tiny_model(family, method="latent", num_thoughts=2, visibility=visibility)
    ids = tiny_ids(length=6)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 37
    before, after = hidden(model, ids), hidden(model, changed)
    close(before[:, :4], after[:, :4], atol=0)
    assert (before[:, 4:] - after[:, 4:]).abs().amax((0, 2)).min() > 1e-6


@pytest.mark.parametrize(("method", "visibility"), VISIBLE)
def test_no_position_sees_the_future_by_any_method_or_forward(method, visibility):
    model = tiny_model(size={"num_layers": 3}, refinements=1, visibility=visibility, **thinking(method))
    ids = tiny_ids(length=6)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 37
    for schedule in (model.method.schedule(), model.method.exact_schedule()):
        before, after = (model.think(x, schedule) for x in (ids, changed))
        close(before[:, :4], after[:, :4], atol=0)
        assert (before[:, 4:] - after[:, 4:]).abs().amax((0, 2)).min() > 1e-7


def test_truncation_changes_gradients_but_not_the_loss():
    ids = tiny_ids()
    losses, gradients = [], []
    for passes in (None, 4, 2, 1):
        model = tiny_model(method="latent", num_thoughts=1, refinements=2, bptt_passes=passes)
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len({loss.item() for loss in losses}) == 1
    close(gradients[0], gradients[1], atol=0)  # there are N + K + 1 = 4 passes
    similar = [torch.cosine_similarity(gradients[0], g, dim=0) for g in gradients]
    assert 1 > similar[2] > similar[3] > 0


def test_a_truncated_pass_keeps_no_graph():
    model = tiny_model(method="latent", num_thoughts=1, refinements=3, bptt_passes=1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        model(tiny_ids(), labels=tiny_ids())
        truncated = sum(saved)
        saved.clear()
        model(tiny_ids(), labels=tiny_ids(), schedule=jacobi(2, 3))
    assert truncated < 0.4 * sum(saved)


def test_weights_cast_under_autocast_without_gradient_are_cast_again_with_it():
    model = tiny_model(dtype=torch.float32, method="latent", num_thoughts=1, refinements=2, bptt_passes=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tiny_ids(), labels=tiny_ids(), return_logits=False).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.decoder.blocks.parameters())


@pytest.mark.parametrize(
    "thoughts",
    [
        {"method": "vanilla", "num_thoughts": 0},
        {"method": "latent", "num_thoughts": 2, "refinements": 1},
        {"method": "latent", "num_thoughts": 2, "solver": "gauss_seidel"},
        {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"},
        {"method": "loop", "num_thoughts": 2},
        {"method": "ponder", "num_thoughts": 2},
    ],
    ids=lambda thoughts: "-".join(map(str, thoughts.values())),
)
@pytest.mark.parametrize("mode", ["selective", "block", "pass"])
def test_activations_that_are_made_again_give_the_same_gradients(family, thoughts, mode):
    ids = tiny_ids()
    gradients = []
    for checkpointed in ("none", mode):
        model = tiny_model(family, **thoughts)
        model.decoder.checkpoint_activations = checkpointed
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b, atol=1e-13)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*arguments, **(options or {}))


def test_a_block_runs_again_once_for_every_pass_and_selective_spares_its_matrix_products():
    calls, products = {}, {}
    for mode in ("none", "selective", "block", "pass"):
        model = tiny_model(method="latent", num_thoughts=1, refinements=2)
        model.decoder.checkpoint_activations = mode
        runs = []
        model.decoder.blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(None))
        with Products() as seen:
            model(tiny_ids(), labels=tiny_ids(), return_logits=False).loss.backward()
        calls[mode], products[mode] = len(runs), seen.count
    assert products["none"] == products["selective"] < products["block"] <= products["pass"]
    assert calls == {"none": 4, "selective": 8, "block": 8, "pass": 8}


def test_the_last_layer_works_only_for_slots_that_are_read():
    model = tiny_model(method="latent", num_thoughts=1, refinements=2)
    cells = {"first": [], "last": []}
    for name, block in (("first", model.decoder.blocks[0]), ("last", model.decoder.blocks[-1])):
        block.mlp.register_forward_hook(lambda m, i, o, name=name: cells[name].append(o.shape[2]))
    model(tiny_ids())
    assert cells == {"first": [1, 2, 2, 2], "last": [1, 1, 1, 1]}


class Everything(Watch):
    """Wants the streams of all slots and keeps those of the last step."""

    every_slot = True

    def ran(self, step, u, x):
        self.x = x


@pytest.mark.parametrize("solver", ["jacobi", "sequential"])
def test_reading_some_slots_gives_what_reading_all_would(family, solver):
    model = tiny_model(family, method="latent", num_thoughts=2, solver=solver)
    ids, everything = tiny_ids(), Everything()
    some, all_ = model.think(ids), model.think(ids, watch=everything)
    close(some, all_, atol=1e-12)
    close(some[:, -1], model.decoder.norm(everything.x)[:, -1, -1], atol=1e-12)


def test_the_number_of_refinements_is_a_function_of_seed_and_step():
    model = tiny_model(method="latent", num_thoughts=1, refinements=(2, 4))
    drawn = [model.training_schedule(3, step).refinements for step in range(200)]
    assert set(drawn) == {2, 3, 4}
    torch.manual_seed(99)
    assert drawn == [model.training_schedule(3, step).refinements for step in range(200)]
    assert drawn != [model.training_schedule(4, step).refinements for step in range(200)]
    assert model.method.schedule().refinements == 4


def test_the_paper_recipe_runs_the_passes_the_paper_counts():
    for thoughts, refinements in ((1, 3), (2, 2), (3, 1)):
        slots = thoughts + 1
        schedule = jacobi(slots, refinements)
        total = sum(sweep.slots for sweep in schedule.sweeps)
        assert total == thoughts * slots // 2 + (refinements + 1) * slots
        assert schedule.sweeps[0] == Sweep(1) and schedule.refinements == refinements


def test_loss_of_labels_is_the_mean_over_shifted_targets():
    model, ids = tiny_model(), tiny_ids()
    out = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    assert model(ids, labels=ids, return_logits=False).logits is None


def test_cheap_refinements_are_drawn_more_often_when_cost_decides():
    model = tiny_model(method="latent", num_thoughts=1, refinements=(0, 3), draw="inverse_cost")
    counts = [0] * 4
    for step in range(2000):
        counts[model.training_schedule(0, step).refinements] += 1
    weights = [1 / (3 + 2 * k) for k in range(4)]
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count / 2000 - weight / sum(weights)) < 0.04


def test_a_curriculum_brings_thoughts_in_late():
    phases = [{"until_step": 3}, {"until_step": 5, "num_thoughts": 1, "refinements": 0}]
    model = tiny_model(method="latent", num_thoughts=2, refinements=2, curriculum=phases)
    schedules = [model.training_schedule(0, step) for step in range(7)]
    assert schedules == [one_pass(1)] * 3 + [jacobi(2, 0)] * 2 + [jacobi(3, 2)] * 2
    ids = tiny_ids()
    vanilla = tiny_model()
    torch.testing.assert_close(model(ids, schedule=schedules[0]).logits, vanilla(ids).logits)


def test_mixtures_in_chunks_equal_the_plain_formula_in_values_and_gradients():
    from latentpt.modeling.mixture import softmax_mixture

    generator = torch.Generator().manual_seed(0)
    hidden_, head, table = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((3, 10, 8), (37, 8), (37, 8))
    )
    for top_k in (None, 5):
        logits = hidden_ @ head.T
        if top_k is not None:
            kth = logits.topk(top_k).values[..., -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        expected = logits.softmax(-1) @ table
        for rows in (7, 1000):
            ours = softmax_mixture(hidden_, head, table, top_k, rows)
            torch.testing.assert_close(ours, expected)
            pair = [
                torch.autograd.grad(o.sin().sum(), (hidden_, head, table), retain_graph=True)
                for o in (ours, expected)
            ]
            torch.testing.assert_close(*pair)


@pytest.mark.parametrize("solver", ["jacobi", "gauss_seidel", "strided"])
def test_residuals_shrink_and_measuring_changes_nothing(solver):
    model = tiny_model(method="latent", num_thoughts=1, refinements=6, solver=solver, stride=3, weights=1.0)
    ids = tiny_ids(length=9)
    measured = Residuals()
    plain, watched = model(ids, labels=ids), model(ids, labels=ids, watch=measured)
    torch.testing.assert_close(watched, plain, atol=0, rtol=0)
    residuals = measured.values().clamp(min=1e-12)  # below is rounding
    assert residuals.shape == (6,)
    assert (residuals[1:] <= residuals[:-1]).all() and residuals[-1] < 1e-3 < residuals[0]


@pytest.mark.parametrize("method", ["lrt", "fbt", "t2mlr"])
@pytest.mark.parametrize("solver", ["jacobi", "strided"])
def test_residuals_of_a_carried_state_begin_at_one_and_end_at_zero(method, solver):
    model = tiny_model(method=method, size={"num_layers": 3}, refinements=8, solver=solver, stride=3)
    ids, measured = tiny_ids(length=7), Residuals()
    watched = model(ids, labels=ids, watch=measured)
    torch.testing.assert_close(watched, model(ids, labels=ids), atol=0, rtol=0)
    residuals = measured.values()
    assert residuals.shape == (8,) and residuals[0] > 0.3 and residuals[-1] < 1e-12
