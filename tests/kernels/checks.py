"""How a kernel's result is judged: its error against float64 is at most twice that of plain torch in the same precision."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within_twice(name: str, ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """ours and plain are results in one low precision, exact the float64 result; -inf must agree where it occurs."""
    assert ours.shape == exact.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(exact.shape)}"
    assert not ours.isnan().any(), f"{name} has NaN"
    finite = exact.isfinite()
    assert torch.equal(ours.isfinite(), finite), (
        f"{name} is not finite where the reference is, or the reverse"
    )
    if not finite.any():
        return
    exact = exact[finite]
    error, allowed = ((x[finite].double() - exact).abs().max().item() for x in (ours, plain))
    # Plain torch is sometimes exact by luck: two units in the last place of the result and sixteen of the float32 it is
    # summed in are granted, of 1 (the inputs' size) or of the largest value.
    floor = 2 * torch.finfo(plain.dtype).eps + 16 * torch.finfo(torch.float32).eps
    floor *= max(1.0, exact.abs().max().item())
    assert error <= max(2 * allowed, floor), (
        f"{name}: error {error:.2e}, plain torch {allowed:.2e}, floor {floor:.1e}"
    )


def in_precision(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Detached copies in a precision, wanting gradients."""
    return [t.detach().to(dtype).requires_grad_() for t in tensors]
