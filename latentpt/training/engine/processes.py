"""Joining the process group, whoever started the processes."""

from __future__ import annotations

import contextlib
import os
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def start_processes(deterministic: bool = False) -> tuple[int, int, torch.device]:
    """Join the process group (of one process when no launcher started us); returns (rank, world size, device).

    `deterministic` makes torch refuse kernels whose result depends on timing.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if "SLURM_STEP_ID" in os.environ:  # srun starts ranks itself and describes them in its own variables
        for name, slurm in SLURM_NAMES.items():
            os.environ.setdefault(name, os.environ[slurm])
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import deepspeed

    # DeepSpeed calls collectives by names that newer torch versions rename, with a warning at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        _skip_shared_memory_extension()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "RANK" not in os.environ:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(backend, timeout=timedelta(minutes=30), verbose=False)
    return dist.get_rank(), dist.get_world_size(), device


def _skip_shared_memory_extension() -> None:
    """A private table of DeepSpeed; if it moves, the extension is compiled as DeepSpeed intends, only slower."""
    with contextlib.suppress(ImportError, AttributeError):
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
