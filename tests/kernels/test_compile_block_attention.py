"""Every attention kernel compiles for every chip within its shared memory and with its tensor cores."""

import pytest
import torch
from latentpt_kernels.on_triton import block_attention as ours
from latentpt_kernels.on_triton.target import TARGETS

from tests.kernels.compiling import GPUS, compile_for

STRIDES = (3 * 16 * 2048, 64, 3072)
HALF, REAL, NUMBERS = torch.bfloat16, torch.float32, torch.int32


def compiled(kernel, chip, size, dtype, relations=(ours.STRICT,), documents=False, group=2):
    itemsize = torch.finfo(dtype).bits // 8
    choice = ours.tiles(kernel, size, itemsize, TARGETS[chip])
    precision = "tf32x3" if dtype is REAL and chip != "gfx942" else "ieee"
    flags = {"DOCUMENTS": documents, "D": size, "PRECISION": precision, **choice}
    blocks = len(relations)
    many, strides, lengths = (dtype,) * blocks, (STRIDES,) * blocks, (2048,) * blocks
    numbers = (NUMBERS,) * blocks
    scales = (0.125, 0.18)
    if kernel == "fwd":
        args = (
            dtype,
            many,
            many,
            dtype,
            REAL,
            NUMBERS,
            numbers,
            STRIDES,
            strides,
            strides,
            STRIDES,
            lengths,
            2048,
            16,
            group,
        )
        return compile_for(
            chip, ours.block_attention_fwd_kernel, *args, scales[1], RELATIONS=relations, **flags
        )
    if kernel == "bwd_q":
        args = (
            dtype,
            many,
            many,
            dtype,
            REAL,
            REAL,
            dtype,
            NUMBERS,
            numbers,
            STRIDES,
            strides,
            strides,
            STRIDES,
        )
        args += (STRIDES, lengths, 2048, 16, group, *scales)
        return compile_for(chip, ours.block_attention_bwd_q_kernel, *args, RELATIONS=relations, **flags)
    args = (
        dtype,
        dtype,
        dtype,
        dtype,
        REAL,
        REAL,
        dtype,
        dtype,
        NUMBERS,
        NUMBERS,
        *(STRIDES,) * 5,
        2048,
        2048,
        16,
        group,
    )
    return compile_for(
        chip, ours.block_attention_bwd_kv_kernel, *args, *scales, RELATION=relations[-1], **flags
    )


CASES = [
    *((kernel, chip, 64, HALF) for kernel in ("fwd", "bwd_q", "bwd_kv") for chip in GPUS),
    ("fwd", "sm_90", 128, HALF),
    ("bwd_kv", "sm_90", 128, HALF),
    ("bwd_q", "sm_80", 80, HALF),
]


@pytest.mark.parametrize("kernel, chip, size, dtype", CASES)
def test_bfloat16_attention_compiles_with_tensor_cores(kernel, chip, size, dtype):
    binary = compiled(kernel, chip, size, dtype)
    print(binary)
    assert binary.uses_tensor_cores()


def test_float32_attention_compiles_at_its_largest_head():
    print(compiled("fwd", "sm_80", 256, REAL))


@pytest.mark.parametrize("kernel", ["fwd", "bwd_q", "bwd_kv"])
def test_several_blocks_with_document_numbers_and_as_many_key_heads_as_heads_compile(kernel):
    """A launch makes a group of 1 head a constant."""
    binary = compiled(kernel, "sm_90", 64, HALF, (ours.CAUSAL, ours.STRICT), documents=True, group=1)
    print(binary)
    assert binary.uses_tensor_cores()


def test_delta_compiles_for_every_chip():
    for chip in GPUS:
        args = (HALF, HALF, REAL, STRIDES, STRIDES, 2048, 16)
        print(compile_for(chip, ours.block_attention_delta_kernel, *args, D=64, BD=64, BM=64))
