"""The loss kernel compiles for every chip."""

import pytest
import torch

from latentpt_kernels.on_triton.linear_cross_entropy import linear_cross_entropy_kernel
from tests.kernels.compiling import GPUS, compile_for


@pytest.mark.parametrize("chip", GPUS)
def test_the_loss_kernel_compiles_without_spills(chip):
    args = (torch.bfloat16, torch.int64, torch.float32, 50304, 50304, -100, 0.0)
    binary = compile_for(chip, linear_cross_entropy_kernel, *args, GRADIENT=True, BV=4096, num_warps=8)
    print(binary)
    assert binary.spills == 0
