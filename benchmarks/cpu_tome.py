"""Token merging on the CPU: `tome_merge` against upstream's formulation, in one run.

    python -m benchmarks.cpu_tome [--threads 2] [--repeats 5]

Times are medians of interleaved runs; memory is the rise of a process's peak above what it holds
before the call (Linux), a fresh process for each. The result goes to
benchmarks/results/cpu_tome.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing.peers import tome_per_round
from tvkernels.tome import tome_merge

# (batch, seqlen, dim, num_tokens): SigLIP so400m at 384 px and at 224 px, CLIP L/14 at 336 px, ViT
# B/16 at 224 px; then clips of four frames: of 256 tokens (few and many) and of SigLIP's 729
SHAPES = (
    (16, 729, 1152, 16),
    (16, 256, 1152, 16),
    (16, 576, 1024, 16),
    (16, 196, 768, 16),
    (4, 1024, 1024, 64),
    (16, 1024, 1024, 64),
    (4, 2916, 1152, 64),
)
RESULT = Path(__file__).parent / "results" / "cpu_tome.json"


FORMS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "ours": lambda x, num_tokens: tome_merge(x, num_tokens).tokens,
    "upstream": tome_per_round,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "SHAPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak(FORMS[args.peak[0]], *SHAPES[int(args.peak[1])]))
        return
    rows = [measure(i, args.threads, args.repeats) for i in range(len(SHAPES))]
    machine = f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}"
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine, "dtype": "float32", "rows": rows}, indent=1))
    for row in rows:
        print(json.dumps(row))


@torch.no_grad()
def measure(index: int, threads: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds, extra megabytes and largest difference of the two on one shape."""
    *shape, num_tokens = SHAPES[index]
    x = tokens(*shape)
    difference = (FORMS["ours"](x, num_tokens) - FORMS["upstream"](x, num_tokens)).abs().max()
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(repeats):
        for name, form in FORMS.items():
            begin = time.perf_counter()
            form(x, num_tokens)
            times[name].append(1e3 * (time.perf_counter() - begin))
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    return {
        "shape": shape,
        "num_tokens": num_tokens,
        "ms": medians,
        "ratio": round(medians["upstream"] / medians["ours"], 2),
        "extra_peak_mb": {
            name: peak_elsewhere("cpu_tome", [name, str(index)], threads) for name in FORMS
        },
        "input_mb": round(x.nbytes / 2**20, 1),
        "largest_difference": float(difference),
    }


def tokens(batch: int, seqlen: int, dim: int) -> torch.Tensor:
    return torch.randn(batch, seqlen, dim, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def peak(
    form: Callable[[torch.Tensor, int], torch.Tensor],
    batch: int, seqlen: int, dim: int, num_tokens: int,
) -> float | None:  # fmt: skip
    """Megabytes that one call needs beyond its input, in this process."""
    # a small call first: what the libraries set up once is not the form's
    form(tokens(1, 64, dim), 16)
    x = tokens(batch, seqlen, dim)
    return extra_peak_mb(lambda: form(x, num_tokens))


def peak_elsewhere(module: str, case: list[str], threads: int) -> float | None:
    """What `python -m benchmarks.<module> --peak <case>` prints, a fresh process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--threads", str(threads)]
    answer = subprocess.run(
        [*command, "--peak", *case],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    last = answer.stdout.split()[-1]
    return None if last == "None" else float(last)


def extra_peak_mb(form: Callable[[], Any]) -> float | None:
    """How far `form()` lifts the process's peak memory; None where the system does not say."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None

    def kilobytes(field: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    clear.write_text("5")  # sets the peak back to the present
    before = kilobytes("VmRSS")
    form()
    return round((kilobytes("VmHWM") - before) / 1024, 1)


if __name__ == "__main__":
    main()
