"""The ops as layers of Hugging Face's kernels. Needs a release of kernels that transformers accepts."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import torch
from transformers.integrations import hub_kernels
from transformers.utils import is_kernels_available

import tvkernels
from tests.integrations.models import MODELS, build, tokens
from tests.integrations.test_patched_models import CONV, SCAN, STEP, UPDATE, close
from tvkernels.integrations.hub import LAYERS, KernelLayer

# kernels warns about the tiny models' other layers, for which there is no kernel
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:kernels")
KERNELS = is_kernels_available()
fits = pytest.mark.skipif(not KERNELS, reason="no release of kernels that transformers takes")


def modeling():
    return import_module("transformers.models.mamba2.modeling_mamba2")


@pytest.mark.parametrize("devices", ["cuda", None, 3, ["cpu", 0]])
def test_devices_are_a_list_of_names(devices):
    with pytest.raises(
        ValueError, match=r"^kernel_mapping: devices must be a list of device types"
    ):
        tvkernels.kernel_mapping(devices)


def test_a_layer_that_there_is_not():
    with pytest.raises(ValueError, match=r"^KernelLayer: name must be one of causal_conv1d_fn, "):
        KernelLayer("rms_norm")


@fits
@pytest.mark.parametrize("name", MODELS)
def test_a_kernelized_model(name, calls):
    import kernels

    model, ids = build(name), tokens(2, 19)
    made = model.generate(ids, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        logits = model(ids).logits
    assert not calls
    with kernels.use_kernel_mapping(tvkernels.kernel_mapping(), inherit_mapping=False):
        hub_kernels.kernelize(model)
    try:
        assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), made)
        with torch.no_grad():
            close(model(ids).logits, logits)
    finally:
        with kernels.use_kernel_mapping({}, inherit_mapping=False):
            hub_kernels.kernelize(model)
    assert min(calls[op] for op in (SCAN, CONV, STEP, UPDATE)) > 0


@fits
def test_a_model_kernelized_twice_for_training_and_compiling(calls):
    """A call that is not served reaches transformers' function, not the first of the two layers."""
    import kernels

    model, ids = build("mamba2").train(), tokens(2, 19)
    x, weight = torch.randn(1, 6, 5), torch.randn(6, 4)
    gelu = modeling().causal_conv1d_fn(x, weight, None, "gelu")
    loss = model(ids, labels=ids, use_cache=False).loss
    assert not calls
    try:
        with kernels.use_kernel_mapping(tvkernels.kernel_mapping(), inherit_mapping=False):
            for _ in range(2):
                mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
                hub_kernels.kernelize(model, mode=mode)
        assert torch.equal(modeling().causal_conv1d_fn(x, weight, None, "gelu"), gelu)
        close(model(ids, labels=ids, use_cache=False).loss, loss)
    finally:
        with kernels.use_kernel_mapping({}, inherit_mapping=False):
            hub_kernels.kernelize(model)
    assert min(calls[op] for op in (SCAN, CONV)) > 0


@fits
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_arguments_of_what_it_replaces(name):
    theirs = type(getattr(modeling(), LAYERS[name]))
    layer = tvkernels.KernelLayer(name).load()
    assert issubclass(layer, torch.nn.Module)
    assert inspect.signature(layer.forward) == inspect.signature(theirs.forward)


@fits
def test_what_a_layer_does_not_serve_goes_to_transformers(calls):
    layer = tvkernels.KernelLayer("causal_conv1d_fn").load()()
    x, weight = torch.randn(1, 6, 5), torch.randn(6, 4)
    theirs = type(modeling().causal_conv1d_fn)()
    for activation, served in (("gelu", 0), ("silu", 1)):
        out = layer(x, weight, None, activation)
        torch.testing.assert_close(out, theirs(x, weight, None, activation))
        assert calls[CONV] == served
    assert tvkernels.KernelLayer("mamba_split_conv1d_scan_combined").load()()(x) is None


@pytest.mark.skipif(KERNELS, reason="kernels is there")
def test_without_kernels():
    with pytest.raises(TypeError, match=r"KernelLayer\('causal_conv1d_fn'\): .* is not a layer of"):
        tvkernels.KernelLayer("causal_conv1d_fn").load()


def test_the_mapping_has_each_layer_on_each_device():
    mapping = tvkernels.kernel_mapping(["cuda"])
    assert all(set(layers) == {"cuda"} for layers in mapping.values())
    assert {name: layers["cuda"].name for name, layers in mapping.items()} == {
        name: name for name in LAYERS
    }
    assert tvkernels.kernel_mapping().keys() == LAYERS.keys()
    assert set(tvkernels.kernel_mapping()["causal_conv1d_fn"]) == {"cpu", "cuda", "rocm"}
