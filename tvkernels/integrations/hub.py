"""The ops as layers for Hugging Face's kernels library and its `kernelize`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch

from tvkernels.core.checks import fail
from tvkernels.integrations.patching import FUSED, SERVED, decline
from tvkernels.integrations.serving import Fallback, Fallbacks, serving, words_of

__all__ = ["KernelLayer", "kernel_mapping"]

# name of the layer in kernels -> name of the function in a modeling module
LAYERS = {
    "causal_conv1d_fn": "causal_conv1d_fn",
    "causal_conv1d_update": "causal_conv1d_update",
    "mamba_chunk_scan_combined": "mamba2_chunk_scan",
    "mamba_split_conv1d_scan_combined": FUSED,
    "selective_state_update": "mamba2_selective_state_update",
}


class KernelLayer:
    """One op in the form that kernels expects.

    `load()` returns a layer with the arguments of transformers' own function; `kernelize` replaces
    that function's forward by the layer's.

    Args:
        name: that of the layer in kernels, one of the keys of `kernel_mapping()`.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, name: str) -> None:
        if not (isinstance(name, str) and name in LAYERS):
            fail("KernelLayer", "name", f"be one of {', '.join(LAYERS)}", repr(name))
        self.name = name
        self._fallbacks = Fallbacks()

    def __repr__(self) -> str:
        return f"KernelLayer({self.name!r})"

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """The calls of its layers that the op did not serve, by reason; transformers' function did.

        Their model is the one whose function the layer was made of, mamba2.
        """
        return self._fallbacks.rows()

    def load(self) -> type[torch.nn.Module]:
        """The layer. It passes calls that its op cannot serve exactly to transformers' function.

        Raises:
            ModuleNotFoundError: transformers is not installed.
            TypeError: transformers was imported without kernels, so its function is not a module.
        """
        module = import_module("transformers.models.mamba2.modeling_mamba2")
        theirs = getattr(module, LAYERS[self.name])
        if not isinstance(theirs, torch.nn.Module):
            raise TypeError(f"{self!r}: {LAYERS[self.name]} is not a layer of kernels")
        # the class's forward: kernelize replaces the forward of the instance
        before = partial(type(theirs).forward, theirs)
        serve: Callable[..., Any] = decline
        if LAYERS[self.name] in SERVED:
            note = partial(self._fallbacks.note, "mamba2", self.name)
            serve = serving(SERVED[LAYERS[self.name]], before, note, words_of(theirs))

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return serve(*args, **kwargs)

        signature = inspect.signature(type(theirs).forward)
        forward.__signature__ = signature  # type: ignore[attr-defined]
        # has_backward: an update that needs a gradient goes to transformers' function
        members = {"forward": forward, "can_torch_compile": True, "has_backward": True}
        return type(self.name, (torch.nn.Module,), members)


def kernel_mapping(
    devices: Sequence[str] = ("cpu", "cuda", "rocm"),
) -> dict[str, dict[str, KernelLayer]]:
    """The mapping for `kernels.register_kernel_mapping` and `kernels.use_kernel_mapping`.

    Args:
        devices: device types, in the library's names, on which to use the ops.

    Raises:
        ValueError: `devices` is no list of names.
    """
    names = isinstance(devices, Sequence) and not isinstance(devices, str)
    if not (names and all(isinstance(device, str) for device in devices)):
        fail("kernel_mapping", "devices", "be a list of device types, as ['cuda']", repr(devices))
    return {name: {device: KernelLayer(name) for device in devices} for name in LAYERS}
