"""After `provide`, code that imports mamba_ssm and causal_conv1d gets our ops."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib import import_module, metadata, util
from pathlib import Path

import pytest
import torch

import tvkernels
from tests.architecture.common import DROP_INS
from tests.integrations.models import MODELS, build, tokens
from tvkernels import provide
from tvkernels.integrations import references, stand_ins

BOTH = ("mamba_ssm", "causal_conv1d")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def provided():
    with provide(*BOTH) as provision:
        yield provision
    assert not {name for name in sys.modules if name.startswith(BOTH)}


@pytest.mark.usefixtures("provided")
def test_the_ops_under_the_names_that_code_imports():
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn as of_interface
    from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
    from mamba_ssm.ops.triton.layernorm_gated import layernorm_fn, rmsnorm_fn
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import (
        mamba_chunk_scan_combined,
        mamba_split_conv1d_scan_combined,
    )

    assert of_interface is causal_conv1d_fn
    got = {
        f.__name__: f for f in (causal_conv1d_fn, causal_conv1d_update, layernorm_fn, rmsnorm_fn)
    }
    got |= {f.__name__: f for f in (causal_conv1d_varlen_states, selective_state_update)}
    got |= {f.__name__: f for f in (mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined)}
    # every function whose signature we share with the packages
    assert got == {name: getattr(tvkernels, name) for name in DROP_INS}


@pytest.mark.usefixtures("provided")
def test_a_module_looks_like_one():
    import mamba_ssm
    import mamba_ssm.ops.triton.ssd_combined as ssd

    # transformers requires 2.0.4 or later
    assert mamba_ssm.__version__ == stand_ins.VERSIONS["mamba_ssm"] == "2.3.2"
    assert util.find_spec("mamba_ssm") is mamba_ssm.__spec__
    assert mamba_ssm.ops.triton.ssd_combined is ssd is import_module(ssd.__name__)
    assert not hasattr(mamba_ssm, "__file__")
    with pytest.raises(AttributeError, match=r"'mamba_ssm' has no attribute 'nothing'"):
        mamba_ssm.nothing  # noqa: B018
    sentence = r"mamba_ssm\.modules: tvkernels stands in for mamba_ssm here and has no modules;"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        import_module("mamba_ssm.modules.mamba2")


@pytest.mark.parametrize("package", BOTH)
def test_a_package_is_installed_while_it_is_provided(package):
    """transformers 4 ignores a package unless importlib.metadata knows its version."""
    names = (package, package.replace("_", "-"), package.title())
    with provide(package), provide(*BOTH):
        assert {metadata.version(name) for name in names} == {stand_ins.VERSIONS[package]}
        assert metadata.packages_distributions()[package] == [package]
        assert [d.name for d in metadata.distributions() if d.name in BOTH] == list(BOTH[::-1])
        assert metadata.distribution(package).files is None
    for name in (*names, "mamba_ssm_and_more"):
        with pytest.raises(metadata.PackageNotFoundError):
            metadata.version(name)
    assert stand_ins._FINDER not in sys.meta_path


def test_taking_one_package_out_leaves_the_other(monkeypatch):
    monkeypatch.setitem(sys.modules, "causal_conv1d_and_more", sys)
    with provide("mamba_ssm"):
        with provide("causal_conv1d"):
            assert sys.modules["causal_conv1d_and_more"] is sys
        assert metadata.version("mamba_ssm") == stand_ins.VERSIONS["mamba_ssm"]
        with pytest.raises(metadata.PackageNotFoundError):
            metadata.version("causal_conv1d")
        with pytest.raises(ModuleNotFoundError, match="tvkernels stands in for mamba_ssm"):
            import_module("mamba_ssm.utils")
    assert sys.modules["causal_conv1d_and_more"] is sys


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize(
    ("module", "name"), [(m, n) for m, names in stand_ins._MISSING.items() for n in names.split()]
)
def test_what_is_not_served_is_an_import_error_that_names_it(module, name):
    found = import_module(module)
    with pytest.raises(
        ImportError, match=rf"{module}\.{name}: tvkernels stands in .* has no {name};"
    ):
        getattr(found, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from {module} import {name}")


def test_the_lists_are_of_one_kind():
    """No name is both served and missing; every module with a missing name is there."""
    modules = {
        f"{package}.{path}".rstrip("."): functions
        for package, parts in stand_ins.SERVED.items()
        for path, functions in parts.items()
    }
    for module, names in stand_ins._MISSING.items():
        assert not set(names.split()) & set(modules[module])
    # a parent stands before its children
    assert all(m.rpartition(".")[0] in {"", *modules} for m in modules)


# the signatures of the packages' own references
REFERENCES = {
    "causal_conv1d_ref": "x, weight, bias=None, initial_states=None, return_final_states=False, "
    "final_states_out=None, activation=None, seq_idx=None",
    "causal_conv1d_update_ref": "x, conv_state, weight, bias=None, activation=None, "
    "cache_seqlens=None",
    "causal_conv1d_varlen_states_ref": "x, cu_seqlens, state_len",
    "mamba_chunk_scan": "x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, "
    "dt_softplus=False",
    "mamba_split_conv1d_scan_ref": "zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, "
    "chunk_size, dt_limit=(0.0, inf), activation='silu', rmsnorm_weight=None, rmsnorm_eps=1e-06, "
    "outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1, norm_before_gate=True",
    "rms_norm_ref": "x, weight, bias, z=None, eps=1e-06, group_size=None, norm_before_gate=True, "
    "upcast=True",
    "selective_state_update_ref": "state, x, dt, A, B, C, D=None, z=None, dt_bias=None, "
    "dt_softplus=False",
    "ssd_chunk_scan_combined_ref": "x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, "
    "dt_softplus=False",
}


def reference(name):
    parts = (functions for parts in stand_ins.SERVED.values() for functions in parts.values())
    return next(functions[name] for functions in parts if name in functions)


@pytest.mark.parametrize("name", REFERENCES)
def test_references_have_the_signature_they_stand_in_for(name):
    parameters = inspect.signature(reference(name)).parameters.values()
    ours = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ", ".join(ours) == REFERENCES[name]
    assert reference(name).__name__.strip("_") == name


def test_references_compute_on_the_reference():
    x, z, weight = torch.randn(2, 5, 12), torch.randn(2, 5, 12), torch.randn(12)
    expected = tvkernels.rmsnorm_fn(x, weight, None, z, 1e-5, 4, False)
    words = {"eps": 1e-5, "group_size": 4, "norm_before_gate": False, "upcast": True}
    # the reference runs whichever backend is forced around it
    for backend in ("reference", "triton"):
        with tvkernels.use_backend(backend):
            assert torch.equal(reference("rms_norm_ref")(x, weight, None, z, **words), expected)
    u, filters = torch.randn(2, 6, 9), torch.randn(6, 4)
    out = reference("causal_conv1d_ref")(u, filters, None, u[..., :3], activation="silu")
    expected = tvkernels.causal_conv1d_fn(u, filters, initial_states=u[..., :3], activation="silu")
    assert torch.equal(out, expected)
    with tvkernels.use_backend("triton"):
        assert torch.equal(
            reference("causal_conv1d_ref")(u, filters, None, u[..., :3], activation="silu"), out
        )
    with pytest.raises(TypeError, match="seqlens"):
        reference("causal_conv1d_ref")(u, filters, seqlens=None)
    numbers = torch.tensor([[3] * 2 + [4] * 7] * 2)
    assert torch.equal(
        reference("causal_conv1d_ref")(u, filters, None, u[..., :3], seq_idx=numbers),
        tvkernels.causal_conv1d_fn(u, filters, None, numbers, u[..., :3]),
    )


def test_arguments():
    with pytest.raises(ValueError, match=r"provide: packages must be some of .*got none"):
        provide()
    with pytest.raises(ValueError, match=r"packages must be some of .*got \['mamba_ssm'\]"):
        tvkernels.provide(["mamba_ssm"])
    with pytest.raises(ValueError, match=r"provide: packages must be some of .*got 'fla'"):
        provide("mamba_ssm", "fla")
    assert "mamba_ssm" not in sys.modules


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A real package of the name."""
    (tmp_path / "causal_conv1d").mkdir()
    (tmp_path / "causal_conv1d" / "__init__.py").write_text("causal_conv1d_fn = 'real'")
    (tmp_path / "causal_conv1d" / "more.py").write_text("")
    (tmp_path / "causal_conv1d-9.9.dist-info").mkdir()
    (tmp_path / "causal_conv1d-9.9.dist-info" / "METADATA").write_text(
        "Name: causal-conv1d\nVersion: 9.9"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [n for n in sys.modules if n.startswith("causal_conv1d")]:
        del sys.modules[name]


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("imported", [False, True])
def test_a_real_package_is_not_hidden_unless_asked(imported):
    if imported:
        import_module("causal_conv1d.more")
    with pytest.raises(
        ValueError, match=r"that is installed .*got 'causal_conv1d'; pass force=True"
    ):
        provide("mamba_ssm", "causal_conv1d")
    assert "mamba_ssm" not in sys.modules
    before = sys.modules.get("causal_conv1d.more")
    with provide("causal_conv1d", force=True):
        ours = import_module("causal_conv1d").causal_conv1d_fn
        assert ours is tvkernels.causal_conv1d_fn
        assert "causal_conv1d.more" not in sys.modules
        assert metadata.version("causal_conv1d") == stand_ins.VERSIONS["causal_conv1d"]
    assert metadata.version("causal_conv1d") == "9.9"
    assert import_module("causal_conv1d").causal_conv1d_fn == "real"
    assert sys.modules.get("causal_conv1d.more") is before


@pytest.mark.parametrize("value", ["no", "", None, 2, [True]])
def test_an_option_that_is_no_bool_hides_nothing(value):
    with pytest.raises(ValueError, match=r"^provide: force must be True or False, got "):
        provide(*BOTH, force=value)
    assert not any(name in sys.modules for name in BOTH)
    with pytest.raises(ValueError, match="upcast must be True or False"):
        references.rms_norm_ref(torch.ones(2), torch.ones(2), None, upcast=value)


def test_providing_twice_is_providing_once():
    with provide(*BOTH) as first:
        module = import_module("mamba_ssm")
        with provide("mamba_ssm", "mamba_ssm") as second:
            assert second.packages == ()
        assert import_module("mamba_ssm") is module
        assert first.packages == BOTH
    first.remove()
    assert util.find_spec("mamba_ssm") is None


IN_ITS_OWN_PROCESS = """
import sys, torch, tvkernels
tvkernels.provide("mamba_ssm", "causal_conv1d")
from tests.integrations.models import MODELS, build, tokens

ids = tokens(2, 19)
out = {}
for name in MODELS:
    model = build(name)
    with torch.no_grad():
        out[name, "eval"] = model(ids).logits
    out[name, "made"] = model.generate(ids[1:], max_new_tokens=3, do_sample=False)
    model.train()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    out[name, "loss"] = loss.detach()
out["providers"] = [(r.library, r.function, r.provider) for r in tvkernels.providers()]
torch.save(out, sys.argv[1])
"""


def test_models_of_transformers_imported_after_it(tmp_path):
    """In a process of its own: a modeling module looks once, when it is imported."""
    command = [sys.executable, "-c", IN_ITS_OWN_PROCESS, str(tmp_path / "out.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt")
    # the gated norm is a class of each modeling module, which `provide` does not replace
    assert {who for *_, who in out["providers"]} == {"tvkernels", "plain PyTorch"}
    plain = {name for _, name, who in out["providers"] if who == "plain PyTorch"}
    assert plain == {"gated norm"}
    ids = tokens(2, 19)
    for name in MODELS:
        model = build(name)
        with torch.no_grad():
            torch.testing.assert_close(out[name, "eval"], model(ids).logits, rtol=0, atol=2e-4)
        made = model.generate(ids[1:], max_new_tokens=3, do_sample=False)
        assert torch.equal(out[name, "made"], made)
        norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNormGated")]
        # before 5.23 some norms have no groups, but the fused function of a training step has
        if all(hasattr(norm, "group_size") for norm in norms):
            loss = model.train()(ids, labels=ids, use_cache=False).loss
            torch.testing.assert_close(out[name, "loss"], loss.detach(), rtol=0, atol=1e-5)


def naive_update(state, x, dt, A, B, C):
    """One step of the selective state space without a head dimension, and its new state."""
    new = state * torch.exp(dt[..., None] * A) + (dt * x)[..., None] * B[:, None]
    return (new * C[:, None]).sum(-1), new


@pytest.mark.usefixtures("provided")
def test_the_reference_of_a_state_update_has_gradients_through_steps_and_states():
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update_ref

    weight = torch.randn(3, 2, 3)

    def gradients(step, state, *inputs):
        x, dt, A, B, C = (t.requires_grad_() for t in inputs)
        outs = []
        for t in range(3):
            out, state = step(state, x.movedim(-1, 0)[t], dt.movedim(-1, 0)[t], A, B[t], C[t])
            outs.append(out)
        total = sum((out * weight[t].to(out)).sum() for t, out in enumerate(outs))
        total = total + state.square().sum()
        return torch.stack(outs), *torch.autograd.grad(total, (x, dt, A, B, C))

    def in_place(state, *inputs):
        return selective_state_update_ref(state, *inputs), state

    B = torch.randn(3, 2, 4)
    leaves = [torch.randn(2, 3, 3), torch.rand(2, 3, 3), -torch.rand(3, 4), B, B.cos()]
    got = gradients(in_place, torch.zeros(2, 3, 4), *(t.clone() for t in leaves))
    zeros = torch.zeros(2, 3, 4, dtype=torch.float64)
    want = gradients(naive_update, zeros, *(t.double() for t in leaves))
    for ours, truth in zip(got, want):
        torch.testing.assert_close(ours, truth.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize("circular", [False, True])
def test_the_reference_of_a_convolution_step_has_the_gradients_of_a_convolution(circular):
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_update_ref

    x, weight = torch.randn(2, 6, 5, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    state = torch.zeros(2, 6, 4)
    counts = torch.zeros(2, dtype=torch.int32)
    steps = [
        causal_conv1d_update_ref(
            x[..., t], state, weight, None, "silu", counts + t if circular else None
        )
        for t in range(5)
    ]
    got = torch.autograd.grad(torch.stack(steps, -1).cos().sum(), (x, weight))
    padded = torch.nn.functional.pad(x, (3, 0))
    whole = torch.nn.functional.conv1d(padded, weight[:, None], groups=6)
    want = torch.autograd.grad(torch.nn.functional.silu(whole).cos().sum(), (x, weight))
    torch.testing.assert_close(got, want)


def test_the_reference_of_a_decode_step_has_gradients_too():
    from tests.ops.test_every_op import inputs_of
    from tvkernels.reference import mamba2_decode_step_ref

    inputs = inputs_of("mamba2_decode_step")
    for name in ("state_batch_indices", "conv_state", "ssm_state"):
        inputs[name] = None if name == "state_batch_indices" else inputs[name][:1].double()
    inputs = {
        k: v.double() if k != "cache_seqlens" and v is not None else v for k, v in inputs.items()
    }
    names = ["zxbcdt", "conv1d_weight", "conv1d_bias", "dt_bias", "A_log", "D"]

    def step(*given):
        states = {name: inputs[name].clone() for name in ("conv_state", "ssm_state")}
        out = mamba2_decode_step_ref(**{**inputs, **states, **dict(zip(names, given))})
        return out, states["conv_state"], states["ssm_state"]

    assert torch.autograd.gradcheck(step, [inputs[name].clone().requires_grad_() for name in names])
