"""The chunked loss against torch's cross-entropy over all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from latentpt.modeling.loss import linear_cross_entropy


def plain(hidden, weight, targets):
    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("rows", [1, 5, 64, 1000])
def test_any_chunk_size_gives_the_loss_and_gradients_of_all_logits_at_once(rows):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(11, (64,), generator=generator)
    targets[::7] = -100
    ours = linear_cross_entropy(hidden, weight, targets, chunk_rows=rows)
    expected = plain(hidden, weight, targets)
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(loss * 0.3, (hidden, weight)) for loss in (ours, expected)]
    torch.testing.assert_close(*grads)


def products(wants_hidden, wants_weight, grad=True):
    """Matrix products [4, 3] x [3, 5] that a forward and backward take."""
    hidden = torch.randn(4, 3, requires_grad=wants_hidden)
    weight = torch.randn(5, 3, requires_grad=wants_weight)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
        loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2, 3]))
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops() / (2 * 4 * 3 * 5)


def test_only_the_gradients_that_are_wanted_are_computed():
    assert products(True, True) == 3
    assert products(True, False) == products(False, True) == 2
    assert products(False, False) == products(True, True, grad=False) == 1


def test_no_tensor_of_tokens_by_vocabulary_exists():
    rows, vocabulary, chunk = 512, 300, 64

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    hidden = torch.randn(rows, 16, requires_grad=True)
    weight = torch.randn(vocabulary, 16, requires_grad=True)
    with Watch() as watch:
        linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.long), chunk_rows=chunk).backward()
    assert watch.largest == chunk * vocabulary


def test_under_autocast_the_product_is_low_precision_and_the_gradient_full():
    hidden = torch.randn(32, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.arange(32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, plain(hidden, weight, targets), rtol=1e-2, atol=0)
