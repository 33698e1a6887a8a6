"""Measure every kernel beside torch: python kernels/bench/run.py [--only OP] [--folder docs/results/gpu] [--dry]."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES
from bench.measure import Row, as_json, measure_device, median_ms, table
from latentpt_kernels import dispatch


def main() -> int:
    """Print a table an operation; 2 if there is no CUDA device and --dry was not given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES, help="one operation instead of all")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="also write everything to DIR/<chip>.json")
    parser.add_argument(
        "--repeats", type=int, default=20, help="timed runs of each implementation (default 20)"
    )
    parser.add_argument(
        "--dry", action="store_true", help="tiny sizes on the CPU: whether the code runs, no figures"
    )
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("there is no CUDA device; --dry runs the code at tiny sizes on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry else "cuda")
    dtype = torch.float32 if options.dry else torch.bfloat16
    repeats = 1 if options.dry else options.repeats
    best = measure_device(device, repeats, options.dry)
    print(
        f"{best.name}: copy {best.copy_gb_per_s:.0f} GB/s, matrix products {best.matmul_tflop_per_s:.2f} TFLOP/s"
    )
    rows: list[Row] = []
    for op, cases in CASES.items():
        if options.only in (None, op):
            found = measure(op, cases, best, device, dtype, repeats, options.dry)
            print(f"\n{op}\n\n{table(found)}", flush=True)
            rows += found
    if options.folder is not None:
        chip = "-".join(best.name.lower().replace("/", " ").split())
        write(options.folder / f"{chip}.json", as_json(best, rows, versions()))
    return 0


def measure(op, cases, best, device, dtype, repeats, dry) -> list[Row]:
    """The rows of one operation; an implementation that does not run here is a row that says so."""
    rows = []
    for case, moved, flops, ways in cases(device, dtype, dry):
        floor = best.floor_ms(moved / 1e9, flops / 1e12)
        for name, run in ways.items():
            try:
                ms, note = median_ms(run, device, repeats), ""
            except Exception as error:
                ms, note = None, (str(error).splitlines() or [type(error).__name__])[0][:120]
                if dry:
                    raise
            rows.append(Row(op, case, name, ms, moved / 1e9, flops / 1e12, floor, note))
    return rows


def versions() -> dict[str, str]:
    """What the figures depend on."""
    import triton

    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version() if torch.cuda.is_available() else None),
        "triton": triton.__version__,
        "command": "python " + " ".join(sys.argv),
        "chosen": json.dumps(dispatch.choices()),
    }


def write(path: Path, content: dict) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
