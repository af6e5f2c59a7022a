"""What our ops are measured against takes our arguments and computes the same."""

from __future__ import annotations

import copy
import functools
import sys
from unittest import mock

import pytest
import torch

import tvkernels
from benchmarks.timing import peers
from benchmarks.timing.bench import Case, Provider, Shape
from benchmarks.timing.measure import Lab
from benchmarks.timing.peers import providers, reference
from tests.benchmarks.timing.lab import LARGE, norm, right, rows_of


def sized(name: str, size: int, batch: int = 1) -> Case:
    return Case(LARGE[name].bench, Shape("sized", size, batch), backward=False)


def test_other_libraries_are_there_or_a_reason_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """mamba-ssm is one object in the place of all its modules, causal-conv1d is broken."""
    fake, folder = mock.MagicMock(__version__="2.3.2"), "mamba_ssm.ops.triton"
    for name in ("layer_norm", "layernorm_gated", "selective_state_update", "ssd_combined"):
        monkeypatch.setitem(sys.modules, f"{folder}.{name}", fake)
    monkeypatch.setitem(sys.modules, "mamba_ssm", fake)
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    present, said = providers(gpu=True)
    *names, mamba = present
    assert [provider.name for provider in names] == ["ours", "reference", "compiled"]
    assert said["mamba-ssm"] == "2.3.2"
    assert said["causal-conv1d"].startswith("does not import: import of causal_conv1d halted")
    mamba.function("rms_norm")("x", "weight", 1e-5, residual="residual")
    fake.rms_norm_fn.assert_called_with(
        "x", "weight", None, residual="residual", prenorm=True, eps=1e-5
    )
    assert mamba.function("rmsnorm_fn") is fake.rmsnorm_fn
    assert mamba.function("causal_conv1d_fn") is None
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert set(providers(gpu=True)[1].values()) == {"not installed"}


@pytest.mark.parametrize("batch", [1, 2])
def test_the_mixers_step_by_two_kernels_is_the_step(batch: int) -> None:
    """By position and by name; mamba-ssm's kernel is replaced by our update."""
    case = sized("decode step of the mixer, batch 1", batch)
    given = case.call("cpu", torch.float32).arguments
    theirs = functools.partial(peers._mixer_step, tvkernels.selective_state_update)
    expected = tvkernels.mamba2_decode_step(**copy.deepcopy(given))
    for got in (theirs(**copy.deepcopy(given)), theirs(*copy.deepcopy(given).values())):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_selection_keeps_the_same() -> None:
    q, hidden, weight = torch.randn(3, 8, 16), torch.randn(3, 90, 48), torch.randn(64, 48) / 7
    for span in [(0, 90), (7, 60)]:
        ours = tvkernels.attention_topk_hidden(q, hidden, weight, 20, span)
        for form in LARGE["selection from hidden states, 2k"].bench.forms:
            theirs = form.function("")(q, hidden, weight, 20, span)
            assert all(map(torch.equal, ours[:2], theirs[:2])), form.name


def test_the_compiled_reference_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    x = torch.randn(3, 8)
    run = reference("rms_norm", compiled=True)
    with tvkernels.use_backend("triton"):
        got = run(x, torch.ones(8), 1e-5)
    assert compiled == [tvkernels.rms_norm]
    assert torch.equal(got, tvkernels.rms_norm(x, torch.ones(8), 1e-5))


@pytest.mark.parametrize(("tokens", "copied"), [(94_787, []), (94_788, ["z"]), (160_000, ["z"])])
def test_beyond_32_bits_the_others_get_dense_copies(tokens: int, copied: list[str]) -> None:
    """The gate's row stride of 22656 passes 2^31 behind token 94,787."""
    given = sized("gated norm, 2k", tokens).call("meta", torch.bfloat16).arguments
    got = Provider("mamba-ssm", lambda op: None, 2**31).in_reach(given)
    assert [n for n, x in got.items() if x is not given[n]] == copied
    assert all(got[name].is_contiguous() for name in copied)
    assert Provider("ours", lambda op: None).in_reach(given) is given
    with pytest.raises(OverflowError, match=r"x has [\d,]+ elements, its offsets 1,000"):
        Provider("short", lambda op: None, 1000).in_reach(given)


def test_dense_copies_keep_the_order_of_dimensions_and_are_noted() -> None:
    x = torch.randn(2, 5, 12)[..., 3:7].mT  # channel-last
    got = Provider("short", lambda op: None, 60).in_reach({"x": x})["x"]
    assert torch.equal(got, x)
    assert got.stride() == (20, 1, 4)
    lab = Lab(gpu=False)
    lab.providers = [Provider("short", lambda op: right, 127 * 96)]
    row = rows_of(norm(), lab)["short"]
    assert row["note"] == "contiguous copies of its arguments"
    assert row["ms"] > 0
