"""Mamba-2 layers of transformers: patched with these ops against as they come, in float32.

One mixer of each model. Once whole, and once without its two projections, which no patch replaces
and whose share grows with the model: the first gives a result that was made before, the second
returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
import transformers

from benchmarks.cpu.measure import Comparison, relative
from tests.integrations.models import MODELS
from tvkernels import patch_transformers

# the layer of the smallest published Mamba-2 (130M): 24 heads x 64, one group, a state of 128
HIDDEN, SEQLEN = 768, 4096
SIZES = {
    "hidden_size": HIDDEN,
    "mamba_d_ssm": 2 * HIDDEN,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads"), 24),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "head_dim"), 64),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 128),
}
ROWS = tuple((model,) for model in MODELS)
FACTS = {"dtype": "float32", "chunk_size": "each model's default", "seqlen": SEQLEN}


def row(model: str, small: bool) -> Comparison:
    """One mixer, forward and training step, whole and without its projections."""
    layer = mixer(model)
    seqlen = 128 if small else SEQLEN
    x = torch.randn(1, seqlen, HIDDEN, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return layer(x)

    def training() -> None:
        layer(x).sum().backward()

    @contextmanager
    def step(run: Callable[[], Any], inner: bool, form: str) -> Iterator[Callable[[], Any]]:
        patched = patch_transformers(model) if form == "ours" else nullcontext()
        with patched, without_projections(layer, x) if inner else nullcontext():
            layer.train(run is training)
            yield run

    passes = {"forward": forward, "training": training}
    times = {name: partial(step, run, False) for name, run in passes.items()}
    times |= {f"inner_{name}": partial(step, run, True) for name, run in passes.items()}
    return Comparison(("ours", "transformers"), {"model": model}, times, {}, relative)


@contextmanager
def without_projections(layer: torch.nn.Module, x: torch.Tensor) -> Iterator[None]:
    with torch.no_grad():
        projected = layer.in_proj(x).requires_grad_()
    given = mock.patch.object(layer.in_proj, "forward", lambda x, made=projected: made)
    with given, mock.patch.object(layer.out_proj, "forward", lambda x: x):
        yield


def mixer(model: str) -> torch.nn.Module:
    """The first Mamba-2 layer's mixer, with random weights and the model's default chunk size."""
    kind, tiny = MODELS[model]
    config = {key: SIZES.get(key, value) for key, value in tiny.items() if "chunk" not in key}
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**config)
    modules = getattr(transformers, f"{kind}ForCausalLM")(made).modules()
    return next(module for module in modules if hasattr(module, "A_log")).eval()
