"""Which package provides the functions that models call: mamba-ssm, causal-conv1d, ours, ..."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

import torch

from tvkernels.integrations.patching import FUSED, SERVED, places, replacement, served_models
from tvkernels.integrations.stand_ins import is_importable, is_stand_in

__all__ = ["Provider", "providers"]

OURS, PLAIN = "tvkernels", "plain PyTorch"
# the module of each function in the two packages
PACKAGES = {
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d",
    "causal_conv1d_varlen_states": "causal_conv1d.causal_conv1d_varlen",
    "mamba_chunk_scan_combined": "mamba_ssm.ops.triton.ssd_combined",
    "mamba_split_conv1d_scan_combined": "mamba_ssm.ops.triton.ssd_combined",
    "selective_state_update": "mamba_ssm.ops.triton.selective_state_update",
    "rmsnorm_fn": "mamba_ssm.ops.triton.layernorm_gated",
    "layernorm_fn": "mamba_ssm.ops.triton.layernorm_gated",
}
# a model of transformers that calls every function of the Mamba-2 models; the other models look
# them up in the same way
WITNESS = "mamba2"


@dataclass(frozen=True)
class Provider:
    """One row of `providers()`: which package serves a call of `function` of `library`.

    Attributes:
        library: causal_conv1d, mamba_ssm or transformers.
        function: its name in that library.
        provider: "tvkernels", the library with its version, "plain PyTorch" (transformers' own
            code), "not installed", or the error of its import.
    """

    library: str
    function: str
    provider: str


def providers() -> list[Provider]:
    """List which package provides each function now: in mamba_ssm, causal_conv1d and transformers.

    For transformers it looks at mamba2 and at every model imported so far; a row names the models
    if they differ. Imports mamba_ssm and causal_conv1d where possible, as transformers does.
    """
    rows = [
        Provider(path.partition(".")[0], name, _in_package(path, name))
        for name, path in PACKAGES.items()
    ]
    names = [*SERVED, FUSED, "gated norm"]
    if util.find_spec("transformers") is None:
        return rows + [Provider("transformers", name, "not installed") for name in names]
    found: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    import_module(f"transformers.models.{WITNESS}.modeling_{WITNESS}")
    for model in served_models():
        module = sys.modules.get(f"transformers.models.{model}.modeling_{model}")
        if module is None:
            continue
        for owner, name, _ in places(module):
            label = "gated norm" if name == "forward" else name
            found[label].setdefault(_who(getattr(owner, name)), []).append(model)
    for name, models in found.items():
        words = [f"{who}: {', '.join(m)}" for who, m in models.items()]
        if models:
            provider = "; ".join(words) if len(models) > 1 else next(iter(models))
            rows.append(Provider("transformers", name, provider))
    return rows


def _in_package(path: str, name: str) -> str:
    package = path.partition(".")[0]
    if is_stand_in(package):
        return OURS
    if not is_importable(package):
        return "not installed"
    try:
        getattr(import_module(path), name)
    # a broken installation can raise anything; the table reports it
    except Exception as error:
        return f"fails to import: {type(error).__name__}: {error}"
    version = getattr(sys.modules[package], "__version__", "of unknown version")
    return f"{package} {version}"


def _who(function: Callable[..., Any]) -> str:
    """The package whose code runs when a function of a modeling module is called."""
    if replacement(function):
        return OURS
    if isinstance(function, torch.nn.Module):
        # Hugging Face's kernels wrap the function in a module
        function = inspect.getclosurevars(type(function).forward).nonlocals["func"]
    implementation = inspect.getclosurevars(function).nonlocals.get("implementation", function)
    package = implementation.__module__.partition(".")[0]
    return PLAIN if package == "transformers" else package
