"""Who ours is measured against: each takes our arguments, and computes the same."""

from __future__ import annotations

import functools
import inspect
import sys
from types import ModuleType

import pytest
import torch

import tvkernels
from benchmarks.timing import peers
from benchmarks.timing.bench import Case, Shape
from benchmarks.timing.measure import Lab
from benchmarks.timing.peers import Provider, reference
from tests.benchmarks.timing.lab import PARTS, benches


def stand_in_for_mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with the parameters of mamba-ssm 2.3.2."""

    def rms_norm_fn(
        x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6,
        dropout_p=0.0, rowscale=None, prenorm=False, residual_in_fp32=False,
        zero_centered_weight=False, return_dropout_mask=False, out=None, residual_out=None,
    ): ...  # fmt: skip

    def rmsnorm_fn(
        x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True, is_rms_norm=True
    ): ...

    def selective_state_update(
        state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False,
        state_batch_indices=None,
    ): ...  # fmt: skip

    def mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
        seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
        return_final_states=False, return_varlen_states=False,
    ): ...  # fmt: skip

    modules = {
        "layer_norm": rms_norm_fn, "layernorm_gated": rmsnorm_fn,
        "selective_state_update": selective_state_update, "ssd_combined": mamba_chunk_scan_combined,
    }  # fmt: skip
    for name, function in modules.items():
        module = ModuleType(name)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"mamba_ssm.ops.triton.{name}", module)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "selective_scan_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    find = peers.importlib.util.find_spec
    there = ("mamba_ssm", "selective_scan_cuda")
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: name if name in there else find(name)
    )


@pytest.mark.parametrize("part", PARTS)
def test_every_provider_takes_every_cases_arguments(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_mamba_ssm(monkeypatch)
    lab, bound = Lab(gpu=False), []
    lab.providers.append(Provider("mamba-ssm", vars(peers.mamba_ssm()).get))
    for case in (case for bench in benches(part) for case in bench.cases(small=False)):
        recorded = case.call("meta", torch.bfloat16)
        for provider in lab._able(case, recorded.op):
            form = case.bench.forms.get(provider.name)
            before = form.before if form is not None else None
            arguments = before(recorded.arguments) if before else recorded.arguments
            inspect.signature(provider.function(recorded.op)).bind(**arguments)
            bound.append(provider.name)
    has_one = ("ssd", "rmsnorm", "selective_state_update", "decode_step")
    assert ("mamba-ssm" in bound) == (part in has_one)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_mixers_step_by_two_kernels_is_the_step(batch: int) -> None:
    """Also mamba-ssm's, by the names of the op: here with our update in its kernel's place."""
    bench = benches("decode_step")[0]
    call = Case(bench, Shape("s", batch), False).call("cpu", torch.float32)
    expected = tvkernels.mamba2_decode_step(**fresh(call.arguments))
    theirs = functools.partial(peers._mixer_step, tvkernels.selective_state_update)
    form = bench.forms["our two ops"]
    for run, arguments in ((theirs, call.arguments), (form.run, form.before(call.arguments))):
        assert torch.allclose(run(**fresh(arguments)), expected, rtol=1e-4, atol=1e-5)


def fresh(arguments: dict) -> dict:
    return {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("span", [(0, 90), (7, 60)])
def test_every_selection_keeps_the_same(batch: int, span: tuple[int, int]) -> None:
    q = torch.randn(batch, 8, 16)
    hidden, weight = torch.randn(batch, 90, 48), torch.randn(4 * 16, 48) * 48**-0.5
    ours = tvkernels.attention_topk_hidden(q, hidden, weight, 20, span)
    for name, form in benches("attention_topk")[1].forms.items():
        theirs = form.run(q, hidden, weight, 20, span)
        assert all(map(torch.equal, ours[:2], theirs[:2])), name


def test_the_compiled_reference_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    x = torch.randn(3, 8)
    run = reference("rms_norm", compiled=True)
    with tvkernels.use_backend("triton"):
        got = run(x, torch.ones(8), 1e-5)
    assert compiled == [tvkernels.rms_norm]
    assert torch.equal(got, tvkernels.rms_norm(x, torch.ones(8), 1e-5))
