"""The memory-bound kernels compile for every chip: at most a few spilled bytes, tensor cores where there is a dot."""

import pytest
import torch
from latentpt_kernels.on_triton import add_norm, decode, latent_shift, linear_cross_entropy, rotate_qk

from tests.kernels.compiling import GPUS, compile_for

HALF, REAL, IDS, CELLS = torch.bfloat16, torch.float32, torch.int64, torch.int32
S3, S2 = (2048, 1024, 64), (2048, 64)
WIDTH = {"BD": 2048, "num_warps": 4}
ROWS, FOUR, MANY = (decode._row_tiles(rows, 1024) for rows in (1, 4, 64))


def loss(chip):
    args = (HALF, IDS, REAL, 50304, 50304, -100, 0.0, 30.0)
    return compile_for(
        chip,
        linear_cross_entropy.linear_cross_entropy_kernel,
        *args,
        GRADIENT=True,
        CAP=True,
        BV=4096,
        num_warps=8,
    )


def norm_forward(chip):
    flags = {"ADD": True, "LAYER": True, "BIAS": True, "TWO": True, **WIDTH}
    return compile_for(chip, add_norm.add_norm_fwd_kernel, *(HALF,) * 9, REAL, REAL, 2048, 1e-5, **flags)


def norm_backward(chip):
    flags = {"LAYER": True, "BIAS": True, "TWO": True, "PASSED": True, **WIDTH}
    args = (HALF, HALF, HALF, REAL, REAL, HALF, HALF, HALF, HALF, REAL, 4096, 2048)
    return compile_for(chip, add_norm.add_norm_bwd_kernel, *args, **flags)


def rotary(chip):
    args = (HALF, HALF, HALF, HALF, REAL, REAL, S3, S3, S3, S3, 0, 4096, 4096, 2, 2, 16)
    flags = {"R": 16, "D": 64, "BR": 16, "BREST": 32, "BN": 64, "BACK": False, "COPY": True}
    return compile_for(chip, rotate_qk.rotate_qk_kernel, *args, **flags)


def shift_forward(chip):
    args = (HALF, HALF, HALF, HALF, HALF, REAL, S2, S3, S3, 2048, 2, 2048, 1.0)
    return compile_for(chip, latent_shift.latent_shift_fwd_kernel, *args, GATE=True, MEASURE=True, **WIDTH)


def shift_backward(chip):
    args = (HALF, HALF, HALF, HALF, HALF, REAL, S3, S2, 2048, 2, 2048, 8192, 1.0)
    return compile_for(chip, latent_shift.latent_shift_bwd_kernel, *args, GATE=True, **WIDTH)


def decode_split(chip, group=2, slots=2):
    args = (HALF, HALF, HALF, CELLS, REAL, REAL, S2, S3, S3, 0, group, 0.18, slots, 0, slots)
    return compile_for(
        chip, decode.decode_attention_split_kernel, *args, D=64, BD=64, BG=16, BN=64, SPLITS=16
    )


def decode_join(chip):
    return compile_for(chip, decode.decode_attention_join_kernel, REAL, REAL, HALF, D=64, BD=64, SPLITS=16)


def decode_linear(chip, rows=ROWS):
    args = (*(HALF,) * 7, rows["BM"], 1024, 4096, 1e-5)
    flags = {"NORM": 2, "NORM_BIAS": True, "ACTIVATION": 3, "BIAS": True, "RESIDUAL": True, "BO": 16, **rows}
    return compile_for(chip, decode.decode_linear_kernel, *args, **flags)


def decode_qkv(chip, rows=ROWS):
    args = (*(HALF,) * 5, REAL, REAL, CELLS, HALF, HALF, HALF, S3, S3, 0, 0, rows["BM"], 1024, 16, 16, 1e-5)
    flags = {
        "NORM": 2,
        "NORM_BIAS": True,
        "BIAS": True,
        "R": 8,
        "D": 64,
        "BP": 16 if rows["DOT"] else 8,
        **rows,
    }
    return compile_for(chip, decode.decode_qkv_kernel, *args, **flags)


ALL = [
    loss,
    norm_forward,
    norm_backward,
    rotary,
    shift_forward,
    shift_backward,
    decode_join,
    decode_linear,
    decode_qkv,
]


@pytest.mark.parametrize("chip", GPUS)
@pytest.mark.parametrize("make", ALL)
def test_memory_bound_kernels_compile_without_spills(make, chip):
    binary = make(chip)
    print(binary)
    assert binary.spills == 0


@pytest.mark.parametrize("chip", GPUS)
def test_decoding_a_batch_compiles_with_tensor_cores(chip):
    for binary in (
        decode_split(chip),
        decode_split(chip, 1, 1),
        decode_linear(chip, MANY),
        decode_qkv(chip, MANY),
    ):
        print(binary)
        assert binary.uses_tensor_cores()


@pytest.mark.parametrize("chip", GPUS)
def test_decoding_four_rows_compiles_without_spills(chip):
    for binary in (decode_linear(chip, FOUR), decode_qkv(chip, FOUR)):
        print(binary)
        assert binary.spills == 0
