"""What unpatched models do, patched ones do: what an op refuses goes to the function of before.

Each case is compared with the unpatched model, and the `Patch` says which calls were not served.
Cases: torch.func, forward AD, vmap, second derivatives, jit.trace; autocast that begins with the
decode, float64, a broadcasting gate, dt_limit with None; missing arguments; compiled code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import tvkernels
from tests.contract import TRITON, device
from tests.integrations.models import build, tokens
from tests.integrations.test_patched_models import close
from tvkernels import patch_transformers

modeling = import_module("transformers.models.mamba2.modeling_mamba2")


@pytest.fixture
def model():
    return build("mamba2", num_hidden_layers=1)


def logits(model, x: Tensor) -> Tensor:
    return model(inputs_embeds=x, use_cache=False).logits


def of_parameters(model, x):
    leaves = {name: p.detach() for name, p in model.named_parameters()}

    def loss(leaves):
        more = {"inputs_embeds": x, "use_cache": False}
        return torch.func.functional_call(model, leaves, (), more).logits.square().mean()

    return torch.func.grad(loss)(leaves)["backbone.layers.0.mixer.A_log"]


def forward_mode(model, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(logits(model, forward_ad.make_dual(x, x.cos()))).tangent


def traced(model, x):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return logits(self.model, x)

    return torch.jit.trace(Logits(), x, check_trace=False)(x)


def second_order(model, x):
    """The gradient of a squared gradient: the ops have first order gradients only."""
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(logits(model, leaf).square().sum(), leaf, create_graph=True)
    weight = model.backbone.layers[0].mixer.norm.weight
    return torch.cat([g.flatten() for g in torch.autograd.grad(first.norm(), (leaf, weight))])


def batch_of_gradients(model, x):
    leaf = x.clone().requires_grad_()
    out = logits(model, leaf)[0, -1, :3]
    return torch.autograd.grad(out, leaf, torch.eye(3), is_grads_batched=True)[0]


TRANSFORMED: dict[str, Callable[..., Tensor]] = {
    "a transformation of torch.func": of_parameters,
    "a transformation of torch.func ": lambda m, x: torch.func.jvp(
        lambda x: logits(m, x), (x,), (x.cos(),)
    )[1],
    "a transformation of torch.func  ": lambda m, x: torch.func.vmap(lambda x: logits(m, x))(
        x[None]
    ),
    "forward-mode AD": forward_mode,
    "torch.jit.trace": traced,
    "a second derivative, or a batch of gradients": second_order,
    "a second derivative, or a batch of gradients ": batch_of_gradients,
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("reason", TRANSFORMED)
def test_transformations_of_pytorch(model, reason, backend):
    x = torch.randn(1, 11, 32)
    before = TRANSFORMED[reason](model, x).detach()
    with patch_transformers("mamba2") as patch:
        after = TRANSFORMED[reason](model, x).detach()
    close(after, before)
    counted = {row.name: row.reason for row in patch.fallbacks}
    assert counted == dict.fromkeys(
        ["causal_conv1d_fn", "mamba2_chunk_scan", "MambaRMSNormGated.forward"], reason.strip()
    )


@pytest.mark.parametrize("learns", [False, True])
def test_make_fx_traces_what_is_served(model, learns, backend):
    x, other = torch.randn(2, 1, 11, 32)

    def traced(x):
        leaf = x.detach().requires_grad_(learns)
        out = logits(model, leaf)
        return torch.autograd.grad(out.square().sum(), leaf)[0] if learns else out

    before = traced(other)
    with torch.set_grad_enabled(learns), patch_transformers("mamba2") as patch:
        graph = make_fx(traced)(x)
        close(graph(other), before)
    assert not patch.fallbacks
    assert "tvkernels" in graph.code


@pytest.mark.usefixtures("backend")
def test_first_order_gradients_are_the_ops_own(model, calls):
    x = torch.randn(1, 11, 32, requires_grad=True)
    with patch_transformers("mamba2") as patch:
        logits(model, x).square().sum().backward()
    assert len(calls) == 3
    assert not patch.fallbacks


def test_a_result_may_be_modified_in_place_before_backward():
    x, weight = torch.randn(1, 6, 5, requires_grad=True), torch.randn(6, 4)

    def gradient():
        out = modeling.causal_conv1d_fn(x, weight, activation="silu")
        out.mul_(2)
        return torch.autograd.grad(out.square().sum(), x)[0]

    before = gradient()
    with patch_transformers("mamba2"):
        close(gradient(), before)


@torch.no_grad()
def decode_under_autocast(model):
    """The state of the convolution is of another dtype than the token."""
    ids = tokens(1, 9)
    name = "cache" if "cache" in model(ids, use_cache=True) else "cache_params"
    cache = model(ids, use_cache=True)[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(ids[:, :1], use_cache=True, **{name: cache}).logits.float()


def scan(**more):
    generator = torch.Generator().manual_seed(7)
    sizes = {"x": (1, 9, 4, 6), "dt": (1, 9, 4), "B": (1, 9, 2, 8), "C": (1, 9, 2, 8)}
    x, dt, B, C = (torch.rand(size, generator=generator) for size in sizes.values())
    return modeling.mamba2_chunk_scan(x, dt, -dt[0, 0], B, C, 8, **more)


def gated(model, *gate: int):
    generator = torch.Generator().manual_seed(1)
    norm = model.backbone.layers[0].mixer.norm
    return norm(torch.randn(2, 5, 64, generator=generator), torch.ones(gate))


REFUSED = {
    "conv_state must be of dtype bfloat16": decode_under_autocast,
    "z must be the shape of x": lambda model: gated(model, 1, 1, 64),
    "dt_limit must be": lambda model: scan(dt_limit=(0.1, None)),
    "x is of dtype float64": lambda model: model.double()(inputs_embeds=WIDE).logits,
}
WIDE = torch.linspace(-1, 1, 320, dtype=torch.float64).view(1, 10, 32)


@pytest.mark.parametrize("reason", REFUSED)
def test_arguments_that_an_op_refuses(model, reason, backend):
    before = REFUSED[reason](copy.deepcopy(model)).detach()
    with patch_transformers("mamba2") as patch:
        after = REFUSED[reason](copy.deepcopy(model)).detach()
    # under autocast the other layers, which are served, round to 16 bit
    close(after, before, 2e-2 if "bfloat16" in reason else 1e-7)
    assert patch.fallbacks
    assert all(reason in row.reason for row in patch.fallbacks), patch


def test_a_wrong_argument_raises_what_it_raises_unpatched(model):
    def error():
        with pytest.raises(Exception) as raised:
            modeling.mamba2_chunk_scan(torch.ones(1, 9, 4, 6), None)
        return type(raised.value), str(raised.value)

    before = error()
    with patch_transformers("mamba2") as patch:
        assert error() == before
    assert patch.fallbacks[0].reason == "mamba_chunk_scan_combined: A must be given, got nothing"


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_refused_call_compiles_without_a_break_and_is_counted_once(model, dynamic):
    torch._dynamo.reset()
    norm = model.backbone.layers[0].mixer.norm
    x, gate = torch.randn(2, 5, 64), torch.randn(1, 1, 64)
    before = norm(x, gate)
    with patch_transformers("mamba2") as patch:
        compiled = torch.compile(
            lambda *args: norm(*args), fullgraph=True, backend="aot_eager", dynamic=dynamic
        )
        for _ in range(3):
            close(compiled(x, gate), before)
    assert [(row.reason, row.calls) for row in patch.fallbacks] == [
        ("its z" if dynamic else patch.fallbacks[0].reason, 1)
    ]


def test_a_compiled_call_is_served(model, calls):
    torch._dynamo.reset()
    norm = model.backbone.layers[0].mixer.norm
    x, gate = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    before = norm(x, gate)
    with patch_transformers("mamba2") as patch:
        close(torch.compile(lambda *a: norm(*a), fullgraph=True, backend="eager")(x, gate), before)
    assert not patch.fallbacks


def test_the_table_of_a_patch_counts_by_argument_not_by_shape(model):
    with patch_transformers("mamba2") as outer:
        gated(model, 1, 5, 64)
        with patch_transformers("mamba2") as inner:
            gated(model, 1, 1, 64)
            gated(model, 2, 1, 64)
        gated(model, 2, 1, 64)
    name = "MambaRMSNormGated.forward"
    assert [(row.model, row.name, row.calls) for row in outer.fallbacks] == [("mamba2", name, 4)]
    assert [(row.model, row.name, row.calls) for row in inner.fallbacks] == [("mamba2", name, 2)]
    assert "got shape (1, 5, 64)" in outer.fallbacks[0].reason
    assert "got shape (1, 1, 64)" in inner.fallbacks[0].reason
    *_, title, head, row = str(outer).splitlines()
    assert title == "calls that went to the functions of before"
    assert head.split() == ["model", "name", "calls", "reason"]
    assert row.startswith(f"mamba2  {name}  4")


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs a GPU, or TRITON_INTERPRET=1")
def test_a_scan_whose_backward_does_not_fit_the_gpu_is_not_served(monkeypatch):
    """The refusal comes from the forward, so the function of before gives out and gradients."""
    from tvkernels.ssd import backward_kernel

    monkeypatch.setattr(backward_kernel, "shared_memory", lambda device: 99 * 1024)
    x, B = torch.randn(1, 9, 1, 272), torch.rand(1, 9, 1, 8)
    dt, A = torch.rand(1, 9, 1), -torch.ones(1)
    x, B, dt, A = (t.to(device()).requires_grad_() for t in (x, B, dt, A))

    def found():
        out = modeling.mamba2_chunk_scan(x, dt, A, B, B, 8)
        return out, *torch.autograd.grad(out.square().sum(), (x, dt, A, B))

    before = found()
    with tvkernels.use_backend("triton"), patch_transformers("mamba2") as patch:
        for ours, theirs in zip(found(), before, strict=True):
            close(ours, theirs)
        assert "Triton's backward has" in patch.fallbacks[0].reason
        with torch.no_grad():
            modeling.mamba2_chunk_scan(x, dt, A, B, B, 8)
        assert [row.calls for row in patch.fallbacks] == [1]
