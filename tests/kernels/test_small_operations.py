"""Add and norm, rotary, latent shift and decoding by torch on a CPU: what runs without Triton, in float64."""

import warnings

import latentpt_kernels
import pytest
import torch
from latentpt_kernels import add_norm, add_norms, dispatch, latent_shift, rotate_qk
from latentpt_kernels.latent_shift import _formula_backward


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("added", [True, False])
def test_the_kernels_formulas_equal_torch_and_its_gradients(kind, added):
    from latentpt_kernels.add_norm import formula, formula_backward

    x, residual, weight, bias = (
        t.requires_grad_() for t in (random(5, 8), random(5, 8, seed=1), random(8), random(8))
    )
    residual = residual if added else None
    (plain,), summed = add_norms(x, residual, [weight], [bias], 1e-5, kind)
    seeds = random(5, 8, seed=2), random(5, 8, seed=3)
    exact = torch.autograd.grad((plain * seeds[0]).sum() + (summed * seeds[1]).sum(), (x, weight, bias))
    with torch.no_grad():
        (normed,), total, mean, rstd = formula(x, residual, [weight], [bias], 1e-5, kind == "layer")
        found = formula_backward([seeds[0]], seeds[1], total, [weight], True, mean, rstd, kind == "layer")
    torch.testing.assert_close(normed, plain, rtol=1e-5, atol=1e-5)  # statistics are float32
    for mine, other in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'batch' is unknown; it may be rms or layer"):
        add_norm(random(2, 4), None, random(4), kind="batch")


def test_a_rotation_turns_back_to_where_it_was_and_keeps_lengths():
    q, k, angles = random(2, 4, 6, 10), random(2, 2, 6, 10, seed=1), random(3, 4)
    turned = rotate_qk(q, k, angles.cos(), angles.sin())
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm(dim=-1))
    for mine, before in zip(rotate_qk(*turned, angles.cos(), -angles.sin()), (q, k), strict=True):
        torch.testing.assert_close(mine, before)


def test_the_gradient_of_a_rotation_passes_a_numerical_check():
    q, k, angles = random(1, 2, 4, 6).requires_grad_(), random(1, 1, 4, 6).requires_grad_(), random(2, 2)
    assert torch.autograd.gradcheck(lambda q, k: rotate_qk(q, k, angles.cos(), angles.sin()), (q, k))


def test_angles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"q \(1, 2, 5, 8\) does not fit angles \(3, 4\)"):
        rotate_qk(random(1, 2, 5, 8), random(1, 2, 6, 8), random(3, 4), random(3, 4))
    with pytest.raises(ValueError, match="for decoding"):
        rotate_qk(
            random(1, 2, 3, 8).requires_grad_(), random(1, 2, 3, 8), random(3, 4), random(3, 4), inplace=True
        )


def test_the_shift_puts_tokens_first_and_states_one_slot_later():
    tokens, states, gate = random(2, 3, 4), random(2, 3, 2, 4, seed=1), random(4, seed=2)
    u, moved = latent_shift(tokens, states, scale=2.0, gate=gate, before=torch.zeros(2, 3, 3, 4))
    assert torch.equal(u[:, :, 0], tokens)
    torch.testing.assert_close(u[:, :, 1:], 2 * states + gate * tokens[:, :, None])
    torch.testing.assert_close(moved[0], moved[1])
    assert latent_shift(tokens, states)[1] is None


def test_the_shifts_backward_formula_equals_autograd():
    leaves = [t.requires_grad_() for t in (random(2, 3, 4), random(2, 3, 2, 4, seed=1), random(4, seed=2))]
    u, _ = latent_shift(*leaves[:2], scale=2.0, gate=leaves[2])
    exact = torch.autograd.grad((u * u.detach().sin()).sum(), leaves)
    found = _formula_backward(u.detach().sin(), leaves[0].detach(), leaves[2].detach(), 2.0, torch.float64)
    for mine, other in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_an_unknown_word_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("LATENTPT_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match="LATENTPT_KERNELS = cuda is unknown; it may be auto, reference, torch, triton"
    ):
        dispatch.mode()


def test_triton_is_not_imported_before_it_runs():
    import subprocess
    import sys

    code = "import sys, latentpt_kernels; print('triton' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_a_kernel_that_does_not_compile_gives_way_with_one_warning(monkeypatch):
    monkeypatch.setenv("LATENTPT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "triton_runs", lambda like: True)
    monkeypatch.setattr(dispatch, "_broken", set())

    def refused():
        raise RuntimeError("PassManager::run failed")

    candidates = {"triton": refused, "torch": lambda: 7}
    with pytest.warns(RuntimeWarning, match="the triton kernel of some_op does not run on cpu") as heard:
        assert dispatch.choose("some_op", torch.zeros(1), candidates) == 7
        assert dispatch.choose("some_op", torch.zeros(1), candidates) == 7
    assert len(heard) == 1


def test_what_a_caller_did_wrong_is_not_taken_for_a_kernel_that_does_not_compile(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_runs", lambda like: True)
    with pytest.raises(ValueError), warnings.catch_warnings():
        dispatch.choose("some_op", torch.zeros(1), {"triton": lambda: int("x"), "torch": lambda: 7})


def test_everything_that_is_exported_exists():
    assert all(hasattr(latentpt_kernels, name) for name in latentpt_kernels.__all__)


def test_a_captured_step_is_the_step_itself_on_a_cpu():
    from latentpt_kernels.graph import Captured

    cells = torch.zeros(1)
    step = Captured(lambda: cells.add_(1), cells.device)
    assert [step().item() for _ in range(3)] == [1, 2, 3]
