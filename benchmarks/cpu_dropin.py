"""Mamba-2 layers of transformers on the CPU: patched with these ops against as they come.

    python -m benchmarks.cpu_dropin [--threads 2] [--repeats 5] [--seqlen 4096] [--no-write]

One mixer of each model in one process on the same float32 input; its calls alternate between
patched and not; times are medians. Once whole, and once without its two projections, which no patch
replaces and whose share grows with the model: what comes out of the first is made before, the
second hands on what it gets. The result goes to benchmarks/results/cpu_dropin.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.cpu_scan import machine, relative
from tvkernels import patch_transformers

RESULT = Path(__file__).parent / "results" / "cpu_dropin.json"
# the layer of the smallest published Mamba-2 (130M): 24 heads x 64, one group, a state of 128; the
# length of chunks is each model's own default
HIDDEN = 768
COMMON = {"vocab_size": 64, "hidden_size": HIDDEN, "num_attention_heads": 8}
COMMON |= {"num_key_value_heads": 8, "intermediate_size": 64}
LAYER = {"mamba_n_heads": 24, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128}
LAYER |= {"num_hidden_layers": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba": ("Bamba", COMMON | LAYER | {"attn_layer_indices": []}),
    "falcon_h1": ("FalconH1", COMMON | LAYER | {"mamba_d_ssm": 2 * HIDDEN}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        COMMON | LAYER | {"layer_types": ["mamba"], "shared_intermediate_size": 64},
    ),
    "mamba2": (
        "Mamba2",
        {"vocab_size": 64, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_heads": 24}
        | {"head_dim": 64, "n_groups": 1, "state_size": 128},
    ),
    "nemotron_h": (
        "NemotronH",
        COMMON
        | {"mamba_num_heads": 24, "mamba_head_dim": 64, "n_groups": 1, "ssm_state_size": 128}
        | {"hybrid_override_pattern": "M"},
    ),
    "zamba2": (
        "Zamba2",
        COMMON
        | {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1}
        | {"n_mamba_heads": 24, "mamba_ngroups": 1, "mamba_d_state": 128},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seqlen", type=int, default=4096)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for model in MODELS:
        rows.append({"model": model, **measure(model, args.seqlen, args.repeats)})
        print(line(rows[-1]), flush=True)
    if not args.no_write:
        facts = {
            **machine(args.threads),
            "chunk_size": "each model's default",
            "seqlen": args.seqlen,
        }
        RESULT.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def measure(model: str, seqlen: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of one mixer, and how far its results lie apart."""
    layer = mixer(model)
    x = torch.randn(1, seqlen, HIDDEN, generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {}
    results = []
    for way in ways(model).values():
        with way(), torch.no_grad():
            results.append(layer(x))
    for prefix, without in (("", nullcontext), ("inner_", lambda: without_projections(layer, x))):
        with without():
            row |= {prefix + part: of for part, of in medians(model, layer, x, repeats).items()}
    return {**row, "relative_difference": relative(*results)}


def medians(model: str, layer: torch.nn.Module, x: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Milliseconds of a forward and of a training step, patched and not."""
    times: dict[str, dict[str, list[float]]] = {
        part: {name: [] for name in ways(model)} for part in ("forward_ms", "training_ms")
    }
    for _ in range(repeats):
        for name, way in ways(model).items():
            with way():
                layer.eval()
                with torch.no_grad():
                    times["forward_ms"][name].append(timed(lambda: layer(x)))
                layer.train()
                times["training_ms"][name].append(timed(lambda: layer(x).sum().backward()))
    return {
        part: {name: round(1e3 * statistics.median(values), 1) for name, values in of.items()}
        for part, of in times.items()
    }


def ways(model: str) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    return {"ours": lambda: patch_transformers(model), "transformers": nullcontext}


class Given(torch.nn.Module):
    """In the place of a projection: what was given, or else what comes in."""

    def __init__(self, projection: torch.nn.Module, value: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.value = projection.weight, projection.bias, value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.value is None else self.value


@contextmanager
def without_projections(layer: torch.nn.Module, x: torch.Tensor) -> Iterator[None]:
    before = layer.in_proj, layer.out_proj
    with torch.no_grad():
        projected = layer.in_proj(x)
    layer.in_proj = Given(before[0], projected.requires_grad_())
    layer.out_proj = Given(before[1])
    try:
        yield
    finally:
        layer.in_proj, layer.out_proj = before


def mixer(model: str) -> torch.nn.Module:
    """The first Mamba-2 layer's inside, with random weights."""
    kind, config = MODELS[model]
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**config)
    )
    return next(module for module in made.modules() if hasattr(module, "A_log")).eval()


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def line(row: dict[str, Any]) -> str:
    """Ours, theirs, and theirs over ours."""
    words = [f"{row['model']:<18}"]
    for part, times in row.items():
        if part.endswith("_ms"):
            mine, theirs = times["ours"], times["transformers"]
            words.append(f"{part} {mine:8} {theirs:8} {theirs / mine:5.1f}x")
    return "  ".join([*words, f"difference {row['relative_difference']:.1e}"])


if __name__ == "__main__":
    main()
