"""One of two ranks, each with half of a batch: their gradients, added up by gloo, are those of the whole batch.

In float64, with targets that lie unevenly, of every method whose loss is more than nats or whose forward draws numbers.
"""

import torch
import torch.distributed as dist

from latentpt.modeling.loss import IGNORE
from tests.conftest import tiny_ids, tiny_model

THOUGHTS = [
    {"method": "alcot", "num_thoughts": 2, "thought_price": 0.5, "correctness": power, "threshold": threshold}
    for power, threshold in ((0.0, 0.0), (1.0, 0.0), (2.0, 0.6))
] + [
    {"method": "ponder3", "num_thoughts": 2, "thought_price": 0.5, "correctness": 1.0},
    {"method": "lrt", "solver": "strided", "stride": 2, "refinements": 1},
    {"method": "fbt", "refinements": 2},
    {"method": "dual_slot", "num_thoughts": 1, "refinements": 1},
]


def gradients(thoughts, part):
    """All gradients in a row, of some rows of the batch, for a loss over the targets of all rows."""
    model, ids = tiny_model(size={"num_layers": 3}, **thoughts), tiny_ids(4, 7)
    targets = ids.roll(-1, 1)
    targets[1, :5] = targets[3] = IGNORE
    count = (targets != IGNORE).sum()
    schedule = model.training_schedule(3, 7)
    model(ids[part], targets=targets[part], target_count=count, schedule=schedule).loss.backward()
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


dist.init_process_group("gloo")
rank = dist.get_rank()
for thoughts in THOUGHTS:
    mine = gradients(thoughts, slice(2 * rank, 2 * rank + 2))
    dist.all_reduce(mine)
    whole = gradients(thoughts, slice(0, 4))
    assert whole.norm() > 1e-3
    torch.testing.assert_close(mine, whole, atol=1e-12, rtol=1e-10, msg=str(thoughts))
dist.destroy_process_group()
