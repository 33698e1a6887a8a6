"""Counted FLOPs against torch's own counter on the same model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentpt.thoughts.schedule import sequential
from latentpt.training.flops import inference_flops_per_token, schedule_cost, training_cost
from tests.conftest import tiny_ids, tiny_model

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

CASES = [
    ({"method": "vanilla"}, None),
    ({"method": "latent", "num_thoughts": 1, "refinements": 3}, None),
    ({"method": "latent", "num_thoughts": 2, "refinements": 1}, None),
    ({"method": "latent", "num_thoughts": 2, "refinements": 2, "bptt_passes": 2}, None),
    ({"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"}, None),
    ({"method": "latent", "num_thoughts": 1}, sequential(2)),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case[0].values())) + ("-seq" if case[1] else "")
)
@pytest.mark.parametrize("family", ["pythia", "llama"])
def test_counted_flops_equal_torchs_counter(family, case):
    thoughts, schedule = case
    size = {"num_layers": 3, "hidden_size": 32, "vocab_size": 37}
    model = tiny_model(family, dtype=torch.float32, size=size, **thoughts)
    rows, length = 2, 12
    ids = tiny_ids(rows, length)
    schedule = schedule or model.method.schedule()
    cost = schedule_cost(model.config, model.method, schedule, length)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as forward, torch.no_grad():
        model(ids, schedule=schedule)
    assert forward.get_total_flops() == pytest.approx(rows * length * cost.forward, rel=0.01)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as both:
        model(ids, targets=ids, schedule=schedule, return_logits=False).loss.backward()
    assert both.get_total_flops() == pytest.approx(rows * length * cost.total, rel=0.01)


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
