"""Counted FLOPs against torch's own counter on the same model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentpt.thoughts import registry
from latentpt.thoughts.cost import inference_flops_per_token, schedule_cost, training_cost
from tests.conftest import FAMILIES, tiny_ids, tiny_model
from tests.thoughts.toys import TOYS

ATEN = torch.ops.aten


def attention_flops(q, k, v, causal, products):
    """`products` matrix products over the visible pairs; torch's own formula would count hidden pairs too."""
    n_q, n_k = q[-2], k[-2]
    pairs = n_q * (n_q + 1) // 2 if causal else n_q * n_k
    return products * 2 * q[0] * q[1] * pairs * q[3]


def forward_flops(q, k, v, dropout=0.0, causal=False, *args, out_shape=None, **kwargs):
    return attention_flops(q, k, v, causal, 2)


def backward_flops(grad, q, k, v, out, lse, dropout=0.0, causal=False, *args, out_shape=None, **kwargs):
    return attention_flops(
        q, k, v, causal, 4
    )  # dq, dk, dv, dp; the recomputed scores are not the model's work


COUNTED = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: forward_flops,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: backward_flops,
}

CASES = {
    "vanilla": {"method": "vanilla"},
    "jacobi-n1-k3": {"method": "latent", "num_thoughts": 1, "refinements": 3},
    "jacobi-n2-k1": {"method": "latent", "num_thoughts": 2, "refinements": 1},
    "jacobi-truncated": {"method": "latent", "num_thoughts": 2, "refinements": 2, "bptt_passes": 2},
    "jacobi-chunked": {"method": "latent", "num_thoughts": 1, "refinements": 1, "chunk": 5},
    "stage-causal": {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"},
    "stage-causal-chunked": {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal", "chunk": 5},
    "gauss-seidel": {"method": "latent", "num_thoughts": 2, "solver": "gauss_seidel", "refinements": 1},
    "gauss-seidel-truncated": {
        "method": "latent", "num_thoughts": 1, "solver": "gauss_seidel", "refinements": 2, "bptt_passes": 1,
    },
    "strided": {"method": "latent", "num_thoughts": 1, "solver": "strided", "stride": 5, "refinements": 2},
    "sequential": {"method": "latent", "num_thoughts": 1, "solver": "sequential"},
    "latent-mixture": {"method": "latent_mixture", "num_thoughts": 1, "refinements": 1},
    "latent-mixture-gauss-seidel": {
        "method": "latent_mixture", "num_thoughts": 1, "solver": "gauss_seidel", "refinements": 1,
    },
    "latent-mixture-sequential": {"method": "latent_mixture", "num_thoughts": 1, "solver": "sequential"},
    "latent-mixture-stage-causal": {"method": "latent_mixture", "num_thoughts": 2, "visibility": "stage_causal"},
    "strided-chunked": {
        "method": "latent", "num_thoughts": 1, "solver": "strided", "stride": 2, "refinements": 2, "chunk": 6,
    },
    "gauss-seidel-chunked": {
        "method": "latent", "num_thoughts": 1, "solver": "gauss_seidel", "refinements": 1, "chunk": 5,
    },
    "pause": {"method": "pause", "num_thoughts": 2},
    "pause-stage-causal": {"method": "pause", "num_thoughts": 2, "visibility": "stage_causal"},
    "loop": {"method": "loop", "num_thoughts": 2},
    "ponder": {"method": "ponder", "num_thoughts": 2},
    "ponder-hidden": {"method": "ponder_hidden", "num_thoughts": 2},
    "carry": {"method": "carry", "num_thoughts": 1, "refinements": 2},
    "carry-stage-strided": {
        "method": "carry", "num_thoughts": 1, "visibility": "stage_causal", "solver": "strided", "refinements": 1,
    },
    "two-losses": {"method": "two_losses", "num_thoughts": 1},
    "mid-loop": {"method": "mid_loop", "num_thoughts": 2},
    "mid-loop-chunked": {"method": "mid_loop", "num_thoughts": 1, "chunk": 5},
    "latent-middle": {"method": "latent", "num_thoughts": 1, "refinements": 1, "span": "middle"},
    "latent-stage-causal-middle": {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal", "span": "middle"},
    "smear": {"method": "smear"},
    "p2n": {"method": "p2n", "refinements": 2},
    "p2n-truncated": {"method": "p2n", "refinements": 3, "bptt_passes": 2},
    "dual-slot": {"method": "dual_slot", "num_thoughts": 1, "refinements": 2},
    "dual-slot-stage-causal": {"method": "dual_slot", "num_thoughts": 2, "visibility": "stage_causal"},
    "dual-slot-blind": {"method": "dual_slot", "num_thoughts": 1, "visibility": "same_slot"},
    "hybrid": {"method": "hybrid", "num_thoughts": 1, "refinements": 1},
    "hybrid-stage-causal": {
        "method": "hybrid", "num_thoughts": 1, "visibility": "stage_causal", "solver": "gauss_seidel", "refinements": 1,
    },
    "lrt-interleaved": {"method": "lrt", "solver": "strided", "stride": 2, "refinements": 1},
    "lrt-multi-refine": {"method": "lrt", "refinements": 2, "shared_projections": True},
    "lrt-detached": {"method": "lrt", "refinements": 2, "detach": True},
    "lrt-chunked": {"method": "lrt", "refinements": 1, "chunk": 5},
    "fbt-one-pass": {"method": "fbt", "refinements": 0},
    "fbt": {"method": "fbt", "refinements": 2},
    "fbt-detached": {"method": "fbt", "refinements": 1, "detach": True},
    "fbt-concat": {"method": "fbt", "refinements": 1, "fusion": "concat", "detach": True},
    "fbt-add": {"method": "fbt", "refinements": 1, "fusion": "add"},
    "t2mlr": {"method": "t2mlr", "refinements": 2},
    "t2mlr-truncated": {"method": "t2mlr", "refinements": 4, "bptt_passes": 2},
    "t2mlr-all": {"method": "t2mlr", "refinements": 1, "span": "all"},
    "alcot": {"method": "alcot", "num_thoughts": 2},
    "alcot-stops": {"method": "alcot", "num_thoughts": 2, "threshold": 0.8},
    "ponder3": {"method": "ponder3", "num_thoughts": 2, "refinements": 1},
    "ponder3-stops-sequential": {"method": "ponder3", "num_thoughts": 1, "threshold": 0.4, "solver": "sequential"},
    "hidden-decoding": {"method": "sequential_hidden_decoding", "num_thoughts": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, method in TOYS.items():
        monkeypatch.setitem(registry.METHODS, name, method)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counted_flops_equal_torchs_counter(family, name):
    size = {"num_layers": 3, "hidden_size": 32, "vocab_size": 37}
    model = tiny_model(family, dtype=torch.float32, size=size, **CASES[name])
    rows, length = 2, 12
    ids = tiny_ids(rows, length)
    schedule = model.method.schedule()
    cost = schedule_cost(model.config, model.method, schedule, length)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as forward, torch.no_grad():
        model(ids, targets=ids, schedule=schedule, return_logits=False)
    assert forward.get_total_flops() == pytest.approx(rows * length * cost.forward, rel=0.01)
    remade = rows * length * recomputed(model, schedule)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as both:
        model(ids, targets=ids, schedule=schedule, return_logits=False).loss.backward()
    assert both.get_total_flops() - remade == pytest.approx(rows * length * cost.total, rel=0.01)


@pytest.mark.parametrize(
    "traits",
    [
        {"activation": "geglu", "norm_place": "both", "norm_offset": 1.0},
        {"qk_norm": "full", "norm_place": "post", "head_size": 12},
        {"qk_norm": "head", "qkv_bias": True, "logit_softcap": 5.0},
    ],
    ids=lambda traits: "-".join(traits),
)
def test_traits_of_families_cost_what_is_counted(traits):
    model = tiny_model(
        "llama", torch.float32, size={"hidden_size": 32, **traits}, method="latent", num_thoughts=1
    )
    ids, schedule = tiny_ids(2, 12), model.method.schedule()
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as both:
        model(ids, targets=ids, schedule=schedule, return_logits=False).loss.backward()
    counted = 24 * schedule_cost(model.config, model.method, schedule, 12).total
    assert both.get_total_flops() == pytest.approx(counted, rel=0.01)


def recomputed(model, schedule):
    """The logits of mixtures are made again in the backward; that is memory saved, not the model's work."""
    logits = 2 * model.config.hidden_size * model.config.vocab_size
    return (
        sum(logits * (sweep.slots - 1) for sweep in schedule.sweeps)
        if hasattr(model.method, "mixture")
        else 0
    )


def test_a_curriculum_costs_the_mean_over_its_phases():
    phases = [{"until_step": 70, "num_thoughts": 0}]
    late = {"method": "latent", "num_thoughts": 1, "refinements": 2}
    model = tiny_model(**late, curriculum=phases)
    early = training_cost(model.config, tiny_model(embed_scale=1.0).thoughts, 8).total
    full = training_cost(model.config, tiny_model(**late).thoughts, 8).total
    assert training_cost(model.config, model.thoughts, 8, steps=100).total == pytest.approx(
        0.7 * early + 0.3 * full
    )
    assert training_cost(model.config, model.thoughts, 8, steps=50).total == pytest.approx(early)
    assert training_cost(model.config, model.thoughts, 8).total == pytest.approx(full)


def test_the_mean_over_drawn_refinements_is_counted():
    model = tiny_model(method="latent", num_thoughts=1, refinements=(1, 3))
    by_k = [schedule_cost(model.config, model.method, model.method.schedule(k), 8).total for k in (1, 2, 3)]
    assert training_cost(model.config, model.thoughts, 8).total == pytest.approx(sum(by_k) / 3)


def test_decoding_with_n_thoughts_costs_n_plus_one_trunks():
    vanilla, latent = tiny_model(), tiny_model(method="latent", num_thoughts=2)
    head = 2 * vanilla.config.hidden_size * vanilla.config.vocab_size
    ratio = (inference_flops_per_token(latent.config, latent.thoughts, 1) - head) / (
        inference_flops_per_token(vanilla.config, vanilla.thoughts, 1) - head
    )
    assert 3 < ratio < 3.2  # three cells; two of them attend to the ones before
