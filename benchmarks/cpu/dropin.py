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

import torch
import transformers

from benchmarks.cpu.measure import Comparison, relative
from tvkernels import patch_transformers

# the layer of the smallest published Mamba-2 (130M): 24 heads x 64, one group, a state of 128; the
# length of chunks is each model's own default
HIDDEN, SEQLEN = 768, 4096
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
ROWS = tuple((model,) for model in MODELS)
FORMS = ("ours", "transformers")
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

    times = {
        "forward": partial(step, forward, False),
        "training": partial(step, training, False),
        "inner_forward": partial(step, forward, True),
        "inner_training": partial(step, training, True),
    }

    def difference() -> dict[str, float]:
        results = []
        for form in FORMS:
            with times["forward"](form) as run:
                results.append(run())
        return {"relative_difference": relative(*results)}

    return Comparison(FORMS, {"model": model}, times, {}, difference)


class Given(torch.nn.Module):
    """In the place of a projection: returns `value`, or its input where that is None."""

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
    """The first Mamba-2 layer's mixer, with random weights."""
    kind, config = MODELS[model]
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**config)
    )
    return next(module for module in made.modules() if hasattr(module, "A_log")).eval()
