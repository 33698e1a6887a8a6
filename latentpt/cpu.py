"""A guard for processors that announce AMX and do not have it.

Some virtual machines list AMX among the processor's features and stop the process that uses it: the first bf16 product of
oneDNN, PyTorch's library for CPUs, then ends it with SIGILL, without a traceback. Such a product is therefore tried once,
in a process of its own, and where that dies oneDNN is told by ONEDNN_MAX_CPU_ISA to stay below AMX. oneDNN reads the
variable at its first product, so `latentpt/__init__.py` calls `guard` before any module of ours imports torch, and
processes that we start inherit it. Nothing here imports torch, and nothing is tried on a processor without AMX.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from latentpt.files import write_text

VARIABLE = "ONEDNN_MAX_CPU_ISA"
CAPS = ("AVX512_CORE_FP16", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2")
"""Values of the variable that leave AMX out, the fastest first."""
PRODUCT = (
    "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "  # it may die: without leaving a core dump
    "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); a @ a"
)
SECONDS = 120
"""How long a try may take; importing torch from a cold disk takes most of it."""
CPUINFO = Path("/proc/cpuinfo")


def guard(cpuinfo: Path = CPUINFO, cache: Path | None = None) -> None:
    """Cap oneDNN's instructions for this process and its children where bf16 products would end them.

    Nothing happens where the user (or a parent process) has set ONEDNN_MAX_CPU_ISA or the processor announces no AMX. The
    outcome is kept in the file `cache` (default: latentpt/cpu.json in the user's cache folder) for this machine and version
    of torch. A cap is said in one line on stderr.
    """
    if VARIABLE in os.environ or "amx_bf16" not in features(cpuinfo):
        return
    cache = cache or cache_folder() / "cpu.json"
    known, key = read(cache), machine(cpuinfo)
    if key not in known:
        outcome = find_cap()
        if outcome is None:
            return
        known[key] = outcome
        with contextlib.suppress(OSError):  # a home that cannot be written to costs a try at every start
            write_text(cache, json.dumps(known, indent=1) + "\n")
    if known[key]:
        os.environ[VARIABLE] = known[key]
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one of the processes of a training says it
            print(
                f"note: this processor announces AMX but does not run it; {VARIABLE}={known[key]} from here on",
                file=sys.stderr,
            )


def find_cap() -> str | None:
    """The first cap under which a bf16 product lives, "" if it needs none; None if nothing can be said."""
    for cap in ("", *CAPS):
        lives = survives(cap)
        if lives is None:
            return None
        if lives:
            return cap
    return None


def survives(cap: str) -> bool | None:
    """Whether a child process multiplies bf16 matrices under `cap` ("": none); None if it failed in another way."""
    environment = {**os.environ, VARIABLE: cap} if cap else dict(os.environ)
    try:
        code = subprocess.run(
            [sys.executable, "-P", "-c", PRODUCT], env=environment, capture_output=True, timeout=SECONDS
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {0: True, -signal.SIGILL: False}.get(code)


def features(cpuinfo: Path) -> set[str]:
    """Features that the processor announces; none where the system does not list them as Linux does."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def machine(cpuinfo: Path) -> str:
    """A name for what the outcome depends on: the machine, its processor and system, the version of torch."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "none"
    parts = [platform.node(), platform.release(), torch, *sorted(features(cpuinfo))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """The folder in which what can be found out again is kept for the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentpt"


def read(cache: Path) -> dict[str, str]:
    """Outcomes by machine; none where the file is missing or no longer makes sense."""
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
