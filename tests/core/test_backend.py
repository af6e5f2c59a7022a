"""Which backend runs: the device decides, `use_backend` forces, and nothing falls back silently.

No machine needs a GPU here: tensors of FakeTensorMode carry the device cuda without one.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tvkernels
from tests.contract import NOT_OPS
from tvkernels.core import backend
from tvkernels.core.backend import backend_for, triton_version
from tvkernels.core.table import KERNELS

MISSING = "Triton is not installed"
REMEDY = (
    r'run it inside tvkernels\.use_backend\("reference"\), or move its tensors to the CPU '
    r'\(device="cpu"\)$'
)
INDICES = {"uniform_topk", "dropped_indices"}


def test_the_kernels_are_the_folders_with_a_kernel_file():
    package = Path(tvkernels.__file__).parent
    assert {path.parent.name for path in package.glob("*/kernel.py")} == set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_cuda_the_reference_runs(kernel, device):
    assert backend_for(torch.empty(2, device=device), kernel) == "reference"


@pytest.mark.usefixtures("triton_is_missing")
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cuda_tensor_without_triton_raises_with_the_remedy(kernel, cuda):
    with pytest.raises(
        tvkernels.BackendUnavailable,
        match=rf"^{kernel}: {MISSING} \(pip install triton\); {REMEDY}",
    ):
        backend_for(cuda, kernel)


def test_the_remedy_works(cuda):
    with tvkernels.use_backend("reference"):
        assert backend_for(cuda, "rmsnorm") == "reference"


@pytest.mark.usefixtures("triton_is_missing")
def test_a_public_op_raises_on_cuda_and_follows_the_remedy(cuda):
    with FakeTensorMode():
        x, weight = torch.empty(2, 4, device="cuda"), torch.empty(4, device="cuda")
        with pytest.raises(tvkernels.BackendUnavailable, match=r"^rmsnorm: "):
            tvkernels.rms_norm(x, weight, 1e-5)
        with tvkernels.use_backend("reference"):
            assert tvkernels.rms_norm(x, weight, 1e-5).device.type == "cuda"


@pytest.mark.usefixtures("triton_is_missing")
def test_forcing_triton_where_it_is_missing_raises(cpu):
    with (
        tvkernels.use_backend("triton"),
        pytest.raises(tvkernels.BackendUnavailable, match=MISSING),
    ):
        tvkernels.rms_norm(cpu, torch.ones(4), 1e-5)


@pytest.mark.usefixtures("triton_is_installed")
class TestWithTriton:
    def test_triton_runs_cuda_tensors(self, cuda):
        assert backend_for(cuda, "rmsnorm") == "triton"

    def test_the_reference_still_runs_cpu_tensors(self, cpu):
        assert backend_for(cpu, "rmsnorm") == "reference"

    def test_only_the_interpreter_runs_triton_on_a_cpu_tensor(self, cpu, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        sentence = "rmsnorm: Triton cannot run on a cpu tensor without TRITON_INTERPRET=1; "
        with tvkernels.use_backend("triton"):
            with pytest.raises(tvkernels.BackendUnavailable, match=sentence + REMEDY):
                backend_for(cpu, "rmsnorm")
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            assert backend_for(cpu, "rmsnorm") == "triton"


@pytest.mark.usefixtures("triton_is_installed")
def test_explain_names_both_backends_of_a_composition(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with tvkernels.use_backend("reference", "ssd", "causal_conv1d"):
        row = rows("cuda")["mamba_split_conv1d_scan_combined"]
    assert row.backend == "reference and triton"
    assert row.reason.startswith("forced by use_backend: plain PyTorch and Triton ")


def rows(device: str) -> dict[str, backend.OpBackend]:
    return {row.op: row for row in tvkernels.explain() if row.device == device}


def test_explain_has_one_row_per_public_op():
    functions = {n for n in tvkernels.__all__ if inspect.isfunction(getattr(tvkernels, n))}
    here = rows("cpu")
    assert set(here) == functions - NOT_OPS
    assert len(tvkernels.explain()) == len(here)
    assert {row.backend for row in here.values()} == {"reference"}
    assert here["tome_merge"].reason == "a CPU tensor: plain PyTorch"
    assert here["uniform_topk"].reason == "index arithmetic: plain PyTorch"


def test_explain_names_the_kernels_of_each_op():
    here = rows("cpu")
    named = {kernel for row in here.values() for kernel in row.kernel.split(", ") if kernel}
    assert named == set(KERNELS)
    for name, row in here.items():
        if name in INDICES:
            assert row.kernel == ""
            continue
        # where the function is written, or what it is composed of
        module = getattr(tvkernels, name).__module__.split(".")[1]
        composed = "causal_conv1d, ssd, rmsnorm"
        assert row.kernel == (composed if module == "split_conv1d_scan" else module), name


@pytest.mark.usefixtures("triton_is_missing")
def test_explain_has_cuda_rows_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = rows("cuda")
    assert there.keys() == rows("cpu").keys()
    for name, row in there.items():
        assert row.backend == ("reference" if name in INDICES else "unavailable")
        assert name in INDICES or MISSING in row.reason


@pytest.mark.usefixtures("triton_is_installed")
def test_explain_names_the_triton_that_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend.metadata, "version", lambda name: f"0.0 of {name}")
    for op in ("rms_norm", "mamba_split_conv1d_scan_combined"):
        assert rows("cuda")[op].backend == "triton"
        assert rows("cuda")[op].reason == "a CUDA tensor: Triton 0.0 of triton"


@pytest.mark.usefixtures("triton_is_missing")
def test_explain_says_what_is_forced():
    def found():
        forced = (row for row in tvkernels.explain() if row.op not in INDICES)
        return {(row.backend, row.reason) for row in forced}

    with tvkernels.use_backend("reference"):
        assert found() == {("reference", "forced by use_backend: plain PyTorch")}
    with tvkernels.use_backend("triton"):
        assert {backend for backend, _ in found()} == {"unavailable"}


@pytest.mark.usefixtures("triton_is_missing")
def test_a_missing_triton_has_no_version():
    assert triton_version() is None


@pytest.mark.usefixtures("triton_is_installed")
def test_a_triton_without_metadata_has_an_unknown_version(monkeypatch):
    def missing(name: str) -> str:
        raise backend.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backend.metadata, "version", missing)
    assert triton_version() == "unknown version"
