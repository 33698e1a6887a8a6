"""Compiled blocks: graphs for shapes and for nothing else, all of them used, and the numbers of eager blocks."""

import pytest
import torch
from small import losses, tiny_run

from latentpt.training.compiling import compile_blocks
from latentpt.training.trainer import train
from tests.conftest import tiny_ids, tiny_model


@pytest.fixture(autouse=True)
def fresh():
    """Dynamo as it starts, and an error where it would give up and run eagerly."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def frames():
    """How many functions dynamo has looked at, and how many of them it has compiled."""
    counted = torch._dynamo.utils.counters["frames"]
    return counted["total"], counted["ok"]


def step(model, ids, refinements):
    """Loss and gradients of one micro-batch."""
    model.zero_grad()
    schedule = model.method.schedule(refinements)
    loss = model(ids[:, :-1], targets=ids[:, 1:], schedule=schedule, return_logits=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_the_number_of_passes_and_of_layers_makes_no_graph():
    made = []
    for layers in (2, 3):
        torch._dynamo.reset()
        model = tiny_model(method="latent", num_thoughts=1, size={"num_layers": layers})
        graphs = compile_blocks(model.decoder.blocks, "eager")
        for refinements in (1, 2, 4):
            step(model, tiny_ids(), refinements)
            made.append(graphs.count)
    assert made[0] > 0 and set(made) == {made[0]}


@pytest.mark.slow
def test_more_graphs_than_dynamos_own_limit_are_all_used_and_compute_what_eager_blocks_compute():
    sizes = [(3, 1), (2, 2), (1, 0), (4, 1)]  # rows, refinements
    eager, model = (tiny_model(method="latent", num_thoughts=3, refinements=2) for _ in range(2))
    graphs = compile_blocks(model.decoder.blocks, "aot_eager")
    for rows, refinements in sizes:
        ids = tiny_ids(rows)
        torch.testing.assert_close(
            step(model, ids, refinements), step(eager, ids, refinements), rtol=0, atol=1e-10
        )
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, eager(ids).logits, rtol=0, atol=1e-10)
    assert graphs.count > 8 and frames() == (graphs.count, graphs.count)
    for rows, refinements in sizes:
        step(model, tiny_ids(rows), refinements)
    assert frames() == (graphs.count, graphs.count)


@pytest.mark.slow
def test_a_training_compiled_by_inductor_trains_validates_and_says_what_it_compiles(text, tmp_path, capfd):
    """Validation has batches of two sizes, 2 and 1, and runs without gradient."""
    plain, compiled = (
        tiny_run(tmp_path / str(on), text, training={"compile": on, "steps": 4}) for on in (False, True)
    )
    train(plain)
    train(compiled)
    for kind in ("train", "validation"):
        assert losses(compiled, kind) == pytest.approx(losses(plain, kind), abs=1e-5)
    total, compiled_ones = frames()
    assert total == compiled_ones > 0
    assert f"compiled graph {total} of the blocks in" in capfd.readouterr().out
