"""Compile a kernel ahead of time for a GPU that is not there, and read what the compiler says about it."""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from latentpt_kernels.on_triton.target import TARGETS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

GPUS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TENSOR_CORE = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05.mma|mma.sync", "gfx942": "v_mfma"}
"""What a dot becomes; on sm_90 a narrow one may stay with the older instruction."""
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Compiled(NamedTuple):
    """What became of one kernel."""

    name: str
    chip: str
    shared: int
    """Bytes of shared memory a program takes."""
    registers: int
    """Per thread (AMD: vector registers)."""
    spills: int
    """Bytes of local memory a thread takes (AMD: spilled vector registers)."""
    assembly: str

    def uses_tensor_cores(self) -> bool:
        """Whether the assembly multiplies matrices in one instruction."""
        return re.search(TENSOR_CORE[self.chip] + "|mma.sync", self.assembly) is not None

    def __str__(self) -> str:
        return f"{self.name:40s} {self.chip:7s} shared {self.shared:6d} B  registers {self.registers:3d}  spills {self.spills:4d}"


def compile_for(chip: str, kernel, *args, num_warps: int = 4, num_stages: int = 2, **constants) -> Compiled:
    """Compile a @triton.jit function; args are a dtype for a pointer, int or float for a number, tuples of these.

    Numbers are given by an example: as at a launch, a multiple of 16 is taken as divisible by 16 and 1 as a constant.
    """
    names = list(inspect.signature(kernel.fn).parameters)
    signature, attributes, ones = {}, {}, {}
    for index, (name, value) in enumerate(zip(names, args, strict=False)):
        signature[name] = _kind(value, (index,), attributes, ones)
    signature.update(dict.fromkeys(names[len(args) :], "constexpr"))
    assert set(names[len(args) :]) == set(constants), (names[len(args) :], constants)
    source = ASTSource(fn=kernel, signature=signature, constexprs={**constants, **ones}, attrs=attributes)
    binary = triton.compile(
        source, target=GPUS[chip], options={"num_warps": num_warps, "num_stages": num_stages}
    )
    assert binary.metadata.shared <= TARGETS[chip].shared, (kernel.fn.__name__, chip, binary.metadata.shared)
    if chip == "gfx942":
        assembly = binary.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", assembly).group(1))
        spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly).group(1))
    else:
        assembly = binary.asm["ptx"]
        registers, spills = _resources(binary.asm["cubin"])
    return Compiled(kernel.fn.__name__, chip, binary.metadata.shared, registers, spills, assembly)


def _kind(value, path: tuple, attributes: dict, ones: dict):
    if isinstance(value, tuple):
        return tuple(_kind(item, (*path, place), attributes, ones) for place, item in enumerate(value))
    if isinstance(value, torch.dtype):
        attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value]
    if isinstance(value, float):
        return "fp32"
    if value == 1:
        ones[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread, by cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout)
    return int(found.group(1)), int(found.group(2))
