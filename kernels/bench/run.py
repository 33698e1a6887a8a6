"""Measure every kernel beside torch: python kernels/bench/run.py [--only OP] [--folder docs/results/gpu] [--dry]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES
from bench.measure import Device, Row, measure_device, median_ms, table
from bench.options import read_options
from bench.results import Results, chip_name
from latentpt_kernels import dispatch


def main() -> int:
    """Print a table an operation; ends with 2 as `read_options` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES, help="one operation instead of all")
    parser.add_argument(
        "--go-on", action="store_true", help="leave out cases that DIR/<chip>.json has already"
    )
    parser.add_argument(
        "--repeats", type=int, default=20, help="timed runs of each implementation (default 20)"
    )
    options = read_options(parser, None, "also write everything to DIR/<chip>.json")
    device = torch.device("cpu" if options.dry else "cuda")
    dtype = torch.float32 if options.dry else torch.bfloat16
    repeats = 1 if options.dry else options.repeats
    best = measure_device(device, repeats, options.dry)
    print(
        f"{best.name}: copy {best.copy_gb_per_s:.0f} GB/s, matrix products {best.matmul_tflop_per_s:.2f} TFLOP/s"
    )
    results = None if options.folder is None else Results(options.folder, chip_name(best.name))
    if results is not None and not options.go_on:
        kept = [row for row in results.content["rows"] if options.only not in (None, row["op"])]
        results.content["rows"] = kept
    ended = options.only is None
    for op in CASES if options.only is None else [options.only]:
        print(f"\n{op}\n", flush=True)
        try:
            rows = measure(op, best, device, dtype, repeats, options.dry, results)
        except Exception as error:
            if options.dry:
                raise
            ended = False  # a case could not even be set up; the other operations are measured all the same
            print(f"{op} ends here: {error}", flush=True)
            continue
        print(table(rows), flush=True)
    if results is not None:
        results.content["benchmarks_ended"] = ended
        results.write()
    return 0


def measure(
    op: str,
    best: Device,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    dry: bool,
    results: Results | None,
) -> list[Row]:
    """The rows of one operation, kept case by case; an implementation that does not run here is a row that says so."""
    known = set() if results is None else results.measured(op)
    measured = []
    for case, moved, flops, ways in CASES[op](device, dtype, dry):
        if case in known:
            continue
        floor = best.floor_ms(moved / 1e9, flops / 1e12)
        rows = []
        for name, run in ways.items():
            try:
                ms, note = median_ms(run, device, repeats), ""
            except Exception as error:
                ms, note = None, (str(error).splitlines() or [type(error).__name__])[0][:120]
                if dry:
                    raise
            rows.append(Row(op, case, name, ms, moved / 1e9, flops / 1e12, floor, note))
        if results is not None:
            results.keep_rows(best, rows, dispatch.choices())
        measured += rows
    return measured


if __name__ == "__main__":
    raise SystemExit(main())
