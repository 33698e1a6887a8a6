"""Counted bytes against what is known to be alive."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latentpt.benchmark.memory import PeakMemory


def test_the_peak_counts_each_storage_once_and_forgets_what_has_died():
    x = torch.zeros(1000)
    with PeakMemory(outside=[x]) as memory:
        y = x + 1
        assert memory.now == 4000
        view = y[10:].view(-1)
        assert memory.now == 4000
        z = x * 2
        assert memory.now == 8000
        del z
        assert memory.now == 4000
        x.add_(1)
        del y
        assert memory.now == 4000  # the view holds it
        del view
    assert memory.now == 0 and memory.peak == 8000


def test_what_autograd_saves_is_alive_until_the_backward():
    w = torch.zeros(100, 100, requires_grad=True)
    x = torch.zeros(50, 100)
    with PeakMemory(outside=[w, x]) as memory:
        h = (x @ w).exp()
        out = h.sum()
        del h
        assert memory.now == 50 * 100 * 4 + 4  # exp saved its result
        out.backward()
        del out
        assert memory.now == 100 * 100 * 4  # the gradient


def test_fake_tensors_are_counted_like_real_ones():
    def work():
        a = torch.ones(64, 64, requires_grad=True)
        (torch.tanh(a @ a) @ a).sum().backward()

    peaks = []
    for _ in range(2):
        with PeakMemory() as memory:
            work()
        peaks.append(memory.peak)
    with FakeTensorMode(), PeakMemory() as memory:
        work()
    assert peaks[0] == peaks[1] == memory.peak > 4 * 64 * 64 * 4
