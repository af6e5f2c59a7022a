"""The causal convolution and the norms on the CPU, against the plain PyTorch path of transformers.

    python -m benchmarks.cpu_conv [--threads 2] [--repeats 5]

Forward, and forward with backward, with the strides that a Mamba-2 layer passes (slices of one
projection). Times are medians of interleaved runs; memory is the rise of the process's peak above
what it holds before the call (Linux). The result goes to benchmarks/results/cpu_conv.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.nemotron_h.modeling_nemotron_h import (
    NemotronHRMSNorm,
    NemotronHRMSNormGated,
)

from benchmarks.cpu_tome import extra_peak_mb
from tvkernels import causal_conv1d_fn, rms_norm, rmsnorm_fn

RESULT = Path(__file__).parent / "results" / "cpu_conv.json"
# (seqlen, d_inner, convolution channels, groups): a small layer, and Nemotron-Nano-9B-v2's
SHAPES = ((4096, 1024, 1536, 4), (2048, 10240, 12288, 8))
DTYPES = (torch.float32, torch.bfloat16)
Forms = dict[str, Callable[[], torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for shape in SHAPES:
        for dtype in DTYPES:
            for name, (size, forms) in cases(*shape, dtype).items():
                row = {"op": name, "shape": size, "dtype": str(dtype).removeprefix("torch.")}
                rows.append({**row, **measure(forms, args.repeats)})
                print(json.dumps(rows[-1]), flush=True)
    machine = f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}"
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def cases(
    seqlen: int, d_inner: int, channels: int, groups: int, dtype: torch.dtype
) -> dict[str, tuple[list[int], Forms]]:
    """Per op its shape and its two forms, on the same inputs."""
    torch.manual_seed(0)
    z, xbc = torch.randn(1, seqlen, d_inner + channels, dtype=dtype).split([d_inner, channels], -1)
    xbc, y = xbc.mT.requires_grad_(), torch.randn(1, seqlen, d_inner, dtype=dtype)
    y.requires_grad_()
    conv = torch.nn.Conv1d(channels, channels, 4, groups=channels, padding=3, dtype=dtype)
    size = d_inner // groups
    gated = NemotronHRMSNormGated(d_inner, size, eps=1e-5).to(dtype)
    plain = NemotronHRMSNorm(d_inner, eps=1e-5).to(dtype)
    taps = conv.weight.squeeze(1)
    return {
        "causal_conv1d_fn": (
            [1, channels, seqlen],
            {
                "ours": lambda: causal_conv1d_fn(xbc, taps, conv.bias, activation="silu"),
                "torch": lambda: F.silu(conv(xbc)[..., :seqlen]),
            },
        ),
        "rmsnorm_fn": (
            [1, seqlen, d_inner],
            {
                "ours": lambda: rmsnorm_fn(y, gated.weight, None, z, 1e-5, size, False),
                "torch": lambda: gated(y, z),
            },
        ),
        "rms_norm": (
            [1, seqlen, d_inner],
            {"ours": lambda: rms_norm(y, plain.weight, 1e-5), "torch": lambda: plain(y)},
        ),
    }


def measure(forms: Forms, repeats: int) -> dict[str, Any]:
    """Median milliseconds of both passes, extra megabytes of the forward, largest difference."""
    cotangent = torch.randn_like(forms["ours"]())

    def forward(form: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return form()

    passes: dict[str, Callable[[Callable[[], torch.Tensor]], Any]] = {
        "forward": forward,
        "forward_backward": lambda form: form().backward(cotangent),
    }
    out: dict[str, Any] = {}
    for name, run in passes.items():
        medians = interleaved(forms, run, repeats)
        ratio = round(medians["torch"] / medians["ours"], 2)
        memory = {key: extra_peak_mb(partial(run, form)) for key, form in forms.items()}
        out[name] = {"ms": medians, "ratio": ratio, "extra_peak_mb": memory}
    difference = forward(forms["ours"]).float() - forward(forms["torch"]).float()
    return {**out, "largest_difference": float(difference.abs().max())}


def interleaved(
    forms: Forms, run: Callable[[Callable[[], torch.Tensor]], Any], repeats: int
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 1):
        for name, form in forms.items():
            begin = time.perf_counter()
            run(form)
            if turn:  # the first turn warms up
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


if __name__ == "__main__":
    main()
