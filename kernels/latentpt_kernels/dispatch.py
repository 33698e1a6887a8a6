"""Which implementation of an operation runs: Triton on CUDA where it is measured faster, torch elsewhere.

LATENTPT_KERNELS, read at every call, overrides: `reference` (the plain formula), `torch` (torch's own kernels) or
`triton` (on CUDA, and on CPU tensors if TRITON_INTERPRET=1 was set before the first call). A kernel that a chip's
compiler or a library refuses is left out for such sizes from then on, with one warning that names it.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
MODES = ("auto", "reference", "torch", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the Triton kernels take; float64 goes to torch."""
HAS_TRITON = importlib.util.find_spec("triton") is not None

_choices: dict[tuple, str] = {}
_broken: set[tuple] = set()
_warned: set[tuple[str, str, str]] = set()


def mode() -> str:
    """The value of LATENTPT_KERNELS, `auto` by default; raises ValueError for another word."""
    value = os.environ.get("LATENTPT_KERNELS") or "auto"
    if value not in MODES:
        raise ValueError(f"LATENTPT_KERNELS = {value} is unknown; it may be {', '.join(MODES)}")
    return value


def wanted(like: Tensor) -> bool:
    """Whether a library that has plain code for a CPU should come here: on any other device, or if LATENTPT_KERNELS says so."""
    return like.device.type != "cpu" or bool(os.environ.get("LATENTPT_KERNELS"))


def interpreted() -> bool:
    """Whether Triton runs its kernels as Python on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_runs(like: Tensor) -> bool:
    """Whether a Triton kernel may be given tensors like this one."""
    wanted = mode()
    if not like.is_cuda and not (wanted == "triton" and interpreted()):
        return False
    return wanted in ("auto", "triton") and like.dtype in TRITON_DTYPES and HAS_TRITON


def widen(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as the kernels can take them: Triton's interpreter multiplies bfloat16 wrongly, so it gets float32."""
    if not interpreted():
        return list(tensors)
    return [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]


def choose(op: str, like: Tensor, candidates: Mapping[str, Callable[[], T]], key: tuple = ()) -> T:
    """Run the best of several ways to compute one thing, the Triton kernel being named `triton`.

    On CUDA each is timed once per (op, key, dtype); elsewhere the first that is allowed is taken. `key` holds the
    sizes the choice depends on. A candidate that fails to compile or to launch is dropped with one warning; one named
    `dense` keeps quadratic tensors, so it is not timed and runs when nothing else does.
    """
    by_triton = triton_runs(like)
    names = [name for name in candidates if name != "triton" or by_triton]
    if not like.is_cuda:
        return candidates[names[0]]() if not by_triton else _first_that_runs(op, like, candidates, names, key)
    with torch.cuda.device(like.device):  # Triton launches on the current device, whatever holds the tensors
        return _first_that_runs(op, like, candidates, names, key)


def _first_that_runs(
    op: str, like: Tensor, candidates: Mapping[str, Callable[[], T]], names: list[str], key: tuple
) -> T:
    chip = _chip(like)
    memo = (op, key, like.dtype, chip)
    left = [name for name in names if (name, *memo) not in _broken]
    names = left or names[-1:]
    if mode() == "triton" and "triton" in names:
        names = ["triton", *(name for name in names if name != "triton")]
    elif like.is_cuda and len(names) > 1 and "dense" not in names:
        if memo not in _choices and not torch.cuda.is_current_stream_capturing():
            _choices[memo] = _fastest(memo, {name: candidates[name] for name in names})
        names.sort(key=lambda name: name != _choices.get(memo, names[0]))
    for name in names[:-1]:
        try:
            return candidates[name]()
        except Exception as error:
            if not _is_refusal(error):
                raise
            _leave_out(name, memo, error)
    return candidates[names[-1]]()


def choices() -> dict[str, str]:
    """What was measured fastest so far, by operation, sizes, dtype and chip: for logs and benchmarks."""
    return {" ".join(map(str, memo)): name for memo, name in _choices.items()}


def size_class(n: int) -> int:
    """n rounded up to a power of two, so that lengths of a kind share one measurement."""
    return 1 << max(0, n - 1).bit_length()


def _fastest(memo: tuple, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The name of the candidate with the least median time of five runs, after two that warm it up."""
    times: dict[str, float] = {}
    for name, run in candidates.items():
        try:
            times[name] = _median_ms(run)
        except torch.OutOfMemoryError:
            continue  # at this size it is none of the fastest
        except Exception as error:
            if not _is_refusal(error):
                raise
            _leave_out(name, memo, error)
    if not times:
        raise RuntimeError(
            f"no implementation of {memo[0]} runs on {memo[-1]}; LATENTPT_KERNELS=reference takes the formula"
        )
    return min(times, key=lambda name: times[name])


def _median_ms(run: Callable[[], object]) -> float:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(6)]
    run(), run()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in itertools.pairwise(marks))[2]


def _is_refusal(error: Exception) -> bool:
    """Whether a kernel was refused by a compiler or a library, rather than given something wrong or no memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, (RuntimeError, NotImplementedError)) or type(error).__module__.startswith(
        "triton"
    )


def _leave_out(name: str, memo: tuple, error: Exception) -> None:
    """For sizes like these; what a library refuses at one it may take at another."""
    op, *_, chip = memo
    _broken.add((name, *memo))
    if (name, op, chip) in _warned:
        return
    _warned.add((name, op, chip))
    reason = str(error).strip().splitlines() or [type(error).__name__]
    warnings.warn(
        f"latentpt_kernels: the {name} kernel of {op} does not run on {chip} ({reason[-1][:200]}); another one is used",
        RuntimeWarning,
        stacklevel=5,
    )


def _chip(like: Tensor) -> str:
    return torch.cuda.get_device_name(like.device) if like.is_cuda else like.device.type
