"""The Mamba-2 scan on the CPU: `mamba_chunk_scan_combined` against transformers' torch path.

    python -m benchmarks.cpu_scan [--threads 2] [--repeats 5] [--no-write]

Both run in one process on the same float32 inputs, their calls alternating; times are medians. No
global flag is set, so that denormal numbers cost both what they cost a user. Memory is the rise of
a process's peak above what it holds before the call (Linux), a fresh process for each. The result
goes to benchmarks/results/cpu_scan.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

from benchmarks.cpu_tome import extra_peak_mb, peak_elsewhere
from tvkernels.ssd import mamba_chunk_scan_combined

# (nheads, headdim, ngroups, d_state, seqlen): a small hybrid at three lengths, Nemotron-Nano-9B-v2
SHAPES = (
    (16, 64, 4, 64, 1024),
    (16, 64, 4, 64, 4096),
    (16, 64, 4, 64, 8192),
    (128, 80, 8, 128, 2048),
)
# NemotronHConfig's default, with which transformers' models call it
CHUNK_SIZE = 128
RESULT = Path(__file__).parent / "results" / "cpu_scan.json"
SCANS: dict[str, Callable[..., Any]] = {
    "ours": mamba_chunk_scan_combined,
    "transformers": mamba2_chunk_scan,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument(
        "--peak", nargs=3, metavar=("SCAN", "SHAPE", "KIND"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        scan, shape, kind = args.peak
        print(peak(SCANS[scan], SHAPES[int(shape)], kind))
        return
    rows = [measure(i, args.threads, args.repeats) for i in range(len(SHAPES))]
    print(table(rows))
    if not args.no_write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({**machine(args.threads), "rows": rows}, indent=1) + "\n")


def measure(index: int, threads: int, repeats: int) -> dict[str, Any]:
    """Times, memory and largest difference of both scans at one shape."""
    shape = SHAPES[index]
    tensors = inputs(*shape)
    with torch.no_grad():
        (out, state), (out_, state_) = (forward(scan, tensors) for scan in SCANS.values())
        difference = max(relative(out, out_), relative(state, state_))
        forward_ms = alternate(lambda scan: forward(scan, tensors), lambda made: None, repeats)
    leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    backward_ms = alternate(lambda scan: forward(scan, leaves), backward, repeats)
    peaks = {
        kind: {
            scan: peak_elsewhere("cpu_scan", [scan, str(index), kind], threads) for scan in SCANS
        }
        for kind in ("forward", "training")
    }
    return {
        "shape": dict(zip(("nheads", "headdim", "ngroups", "d_state", "seqlen"), shape)),
        "forward_ms": forward_ms["made"],
        "backward_ms": backward_ms["used"],
        "forward_extra_mb": peaks["forward"],
        "training_extra_mb": peaks["training"],
        "output_mb": round(tensors["x"].nbytes / 2**20, 1),
        "relative_difference": difference,
    }


def inputs(
    nheads: int, headdim: int, ngroups: int, d_state: int, seqlen: int
) -> dict[str, torch.Tensor]:
    """Steps log-uniform in [1e-3, 0.1] and A uniform in [-16, -1], as Mamba-2 starts training."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    steps = torch.rand(1, seqlen, nheads, generator=generator)
    return {
        "x": randn(1, seqlen, nheads, headdim),
        "dt": torch.exp(math.log(1e-3) + steps * math.log(100)),
        "A": -1 - 15 * torch.rand(nheads, generator=generator),
        "B": randn(1, seqlen, ngroups, d_state),
        "C": randn(1, seqlen, ngroups, d_state),
        "D": randn(nheads),
    }


def forward(scan: Callable[..., Any], tensors: dict[str, torch.Tensor]) -> Any:
    """(out, final state)."""
    x, dt, A, B, C, D = tensors.values()
    return scan(x, dt, A, B, C, CHUNK_SIZE, D=D, return_final_states=True)


def backward(made: Any) -> None:
    """Gradients of every input for random-like cotangents on both results."""
    torch.autograd.backward(made, [tensor.detach() for tensor in made])


def alternate(
    make: Callable[[Callable[..., Any]], Any], use: Callable[[Any], None], repeats: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of make(scan) and of use(what it made), the scans taking turns."""
    times: dict[str, dict[str, list[float]]] = {
        part: {scan: [] for scan in SCANS} for part in ("made", "used")
    }
    for _ in range(repeats):
        for name, scan in SCANS.items():
            begin = time.perf_counter()
            made = make(scan)
            middle = time.perf_counter()
            use(made)
            times["made"][name].append(middle - begin)
            times["used"][name].append(time.perf_counter() - middle)
    return {
        part: {name: round(1e3 * statistics.median(values), 2) for name, values in of.items()}
        for part, of in times.items()
    }


def peak(scan: Callable[..., Any], shape: tuple[int, ...], kind: str) -> float | None:
    """Megabytes that one call needs beyond its inputs, in this process."""
    # a short call first: what the libraries set up once is not the scan's
    small = inputs(*shape[:4], 16)
    tensors = inputs(*shape)
    if kind == "forward":
        with torch.no_grad():
            forward(scan, small)
            return extra_peak_mb(lambda: forward(scan, tensors))
    for each in (small, tensors):
        for leaf in each.values():
            leaf.requires_grad_()
    backward(forward(scan, small))
    return extra_peak_mb(lambda: backward(forward(scan, tensors)))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def machine(threads: int) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {threads} threads",
        # what else ran: times mean little where this is far above the threads
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "dtype": "float32",
        "chunk_size": CHUNK_SIZE,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line per shape: ours, theirs and theirs over ours."""
    measures = ("forward_ms", "forward_extra_mb", "backward_ms", "training_extra_mb")
    lines = [f"{'shape':<28}" + "".join(f"{name:>30}" for name in measures)]
    for row in rows:
        line = f"{' '.join(f'{k[0]}{v}' for k, v in row['shape'].items()):<28}"
        for name in measures:
            ours, theirs = row[name]["ours"], row[name]["transformers"]
            ratio = f"{theirs / ours:.1f}x" if ours and theirs else "?"
            line += f"{f'{ours} {theirs} {ratio}':>30}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
