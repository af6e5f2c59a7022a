"""The inside of a mixer against one written out token by token, and against a golden mixer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.contract import (
    COMPILED,
    as_tuple,
    cast,
    check_capture,
    check_contract,
    compilers,
    on_device,
)
from tests.ops.common import DATA, DTYPES
from tvkernels import use_backend
from tvkernels.split_conv1d_scan import mamba_split_conv1d_scan_combined

NHEADS, HEADDIM, NGROUPS, D_STATE, WIDTH = 4, 3, 2, 5, 4
DIM, D_BC = NHEADS * HEADDIM, NGROUPS * D_STATE

Tensors = dict[str, Any]


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def naive_mixer(
    zxbcdt: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    chunk_size: int,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: torch.Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: torch.Tensor | None = None,
    outproj_bias: torch.Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
    initial_conv_states: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """One token after the other; rounded to zxbcdt's dtype where one op hands over to the next."""
    narrow, wide = zxbcdt.dtype, torch.promote_types(zxbcdt.dtype, torch.float32)
    batch, seqlen, columns = zxbcdt.shape
    nheads = D.shape[0]
    headdim = headdim or D.shape[1]
    dim, heads_per_group = nheads * headdim, nheads // ngroups
    d_bc = (conv1d_weight.shape[0] - dim) // 2
    d_mlp = (columns - 2 * dim - 2 * d_bc - nheads) // 2
    taps, skip = conv1d_weight.to(wide), (D if D.ndim == 2 else D[:, None]).to(wide)
    state = zxbcdt.new_zeros(batch, nheads, headdim, d_bc // ngroups, dtype=wide)
    if initial_states is not None:
        state = initial_states.to(wide)
    tokens = []
    for t in range(seqlen):
        row = zxbcdt[:, t].to(wide)
        z = row[:, 2 * d_mlp : 2 * d_mlp + dim]
        window = zxbcdt.new_zeros(batch, dim + 2 * d_bc, dtype=wide)
        for back in range(taps.shape[1]):
            if t >= back:
                earlier = zxbcdt[:, t - back, 2 * d_mlp + dim : columns - nheads].to(wide)
            elif initial_conv_states is not None:
                earlier = initial_conv_states[:, :, t - back].to(wide)
            else:
                earlier = torch.zeros_like(window)
            if seq_idx is not None:
                earlier = earlier * (seq_idx[:, max(t - back, 0)] == seq_idx[:, t])[:, None]
            window = window + taps[:, -1 - back] * earlier
        window = window if conv1d_bias is None else window + conv1d_bias.to(wide)
        window = (window if activation is None else silu(window)).to(narrow).to(wide)
        x = window[:, :dim].unflatten(1, (nheads, headdim))
        b, c = window[:, dim:].unflatten(1, (2, ngroups, -1)).unbind(1)
        b, c = (v.repeat_interleave(heads_per_group, 1) for v in (b, c))
        step = F.softplus(row[:, -nheads:] + dt_bias.to(wide)).clamp(*dt_limit)
        if seq_idx is not None and t > 0:
            state = state * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        decay = torch.exp(step * A.to(wide))[..., None, None]
        state = decay * state + (step[..., None] * x)[..., None] * b[:, :, None]
        y = ((state * c[:, :, None]).sum(-1) + skip * x).flatten(1)
        if rmsnorm_weight is None:
            y = (y * silu(z)).to(narrow)
        else:
            y = y.to(narrow).to(wide)
            y = y if norm_before_gate else y * silu(z)
            parts = y.unflatten(1, (ngroups, -1))
            y = (parts / (parts.square().mean(-1, keepdim=True) + rmsnorm_eps).sqrt()).flatten(1)
            y = y * rmsnorm_weight.to(wide)
            y = (y * silu(z) if norm_before_gate else y).to(narrow)
        mlp = silu(row[:, :d_mlp]) * row[:, d_mlp : 2 * d_mlp]
        tokens.append(torch.cat([mlp.to(narrow), y], 1))
    out = torch.stack(tokens, 1)
    if outproj_weight is not None:
        out = out @ outproj_weight.T.to(narrow)
        out = out if outproj_bias is None else out + outproj_bias
    return (out, state) if return_final_states else (out,)


def mixer_inputs(d_mlp: int = 0, seqlen: int = 40, **changes: Any) -> Tensors:
    generator = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "zxbcdt": randn(2, seqlen, 2 * d_mlp + 2 * DIM + 2 * D_BC + NHEADS),
        "conv1d_weight": randn(DIM + 2 * D_BC, WIDTH) / 2,
        "conv1d_bias": randn(DIM + 2 * D_BC) / 2,
        "dt_bias": randn(NHEADS) - 2,
        "A": -1 - randn(NHEADS).square(),
        "D": randn(NHEADS, HEADDIM),
        "chunk_size": 16,
        "rmsnorm_weight": randn(DIM),
        "rmsnorm_eps": 1e-5,
        "outproj_weight": randn(7, d_mlp + DIM) / 4,
        "outproj_bias": randn(7),
        "ngroups": NGROUPS,
        "norm_before_gate": False,
    }
    return {**inputs, **changes}


STATE = torch.linspace(-1, 1, 2 * DIM * D_STATE, dtype=torch.float64)
CONV_STATE = torch.linspace(-2, 1, 2 * (DIM + 2 * D_BC) * (WIDTH - 1), dtype=torch.float64)
CONV_STATE = CONV_STATE.reshape(2, DIM + 2 * D_BC, WIDTH - 1)
VARIANTS: dict[str, Tensors] = {
    "gate, then norm": {},
    "norm, then gate": {"norm_before_gate": True},
    "gated in the scan": {"rmsnorm_weight": None},
    "no projection": {"outproj_weight": None, "outproj_bias": None},
    "beside an MLP": {"d_mlp": 6},
    "beside an MLP, gated in the scan": {"d_mlp": 6, "rmsnorm_weight": None},
    "D per head": {"D": torch.linspace(-1, 1, NHEADS, dtype=torch.float64), "headdim": HEADDIM},
    "states": {
        "initial_states": STATE.reshape(2, NHEADS, HEADDIM, D_STATE),
        "initial_conv_states": CONV_STATE,
        "return_final_states": True,
    },
    "packed states": {
        "seq_idx": torch.tensor([[3] * 2 + [1] * 6 + [2] * 32] * 2),
        "initial_states": STATE.reshape(2, NHEADS, HEADDIM, D_STATE),
        "initial_conv_states": CONV_STATE,
        "return_final_states": True,
        "state_dtype": torch.float32,
    },
    "packed": {"seq_idx": torch.tensor([[0] * 7 + [1] * 2 + [2] * 31] * 2)},
    "no bias, no activation, dt_limit": {
        "conv1d_bias": None,
        "activation": None,
        "outproj_bias": None,
        "dt_limit": (0.05, 0.2),
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    inputs = mixer_inputs(**VARIANTS[variant])
    wrt = [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    # The seed matters: gradients of few numbers (dA, biases) are sums that nearly cancel. If the plain
    # form happens to have a small error, another order of summation may exceed twice that error
    # (3 of 150 runs over the seeds 0 to 4, by a few per cent each).
    check_contract(
        mamba_split_conv1d_scan_combined, naive_mixer, inputs, dtype=dtype, wrt=wrt, seed=2
    )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "variant", ["gate, then norm", "gated in the scan", "states", "packed states"]
)
def test_contract_on_kernels(variant: str) -> None:
    inputs = mixer_inputs(**VARIANTS[variant])
    wrt = [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    check_contract(mamba_split_conv1d_scan_combined, naive_mixer, inputs, wrt=wrt, seed=2)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cut", [1, 17])
def test_a_prompt_may_be_cut_anywhere(cut: int) -> None:
    """Inside a packed sequence, whose number goes on in the second part."""
    inputs = on_device(mixer_inputs(seqlen=24, seq_idx=torch.tensor([[4] * 13 + [5] * 11] * 2)))
    inputs["return_final_states"] = True
    whole, last = mamba_split_conv1d_scan_combined(**inputs)
    rows = {name: inputs.pop(name) for name in ("zxbcdt", "seq_idx")}
    heads, tails = (
        {k: v[:, part] for k, v in rows.items()} for part in (slice(cut), slice(cut, None))
    )
    first, state = mamba_split_conv1d_scan_combined(**inputs, **heads)
    columns = torch.nn.functional.pad(heads["zxbcdt"], (0, 0, WIDTH - 1, 0))[:, 1 - WIDTH :]
    second, final = mamba_split_conv1d_scan_combined(
        **inputs, **tails, initial_states=state,
        initial_conv_states=columns[..., DIM:-NHEADS].mT,
    )  # fmt: skip
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(final, last, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("backend")
def test_two_runs_are_bitwise_equal() -> None:
    inputs = cast(on_device(mixer_inputs(**VARIANTS["states"])), torch.bfloat16)
    inputs["zxbcdt"].requires_grad_()

    def run() -> list[torch.Tensor]:
        outs = as_tuple(mamba_split_conv1d_scan_combined(**inputs))
        total = sum(out.cos().sum() for out in outs)
        return [*outs, *torch.autograd.grad(total, [inputs["zxbcdt"]])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


@pytest.mark.skipif(not COMPILED, reason="needs a GPU")
@pytest.mark.triton
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    with use_backend("triton"):
        inputs = cast(on_device(mixer_inputs(**VARIANTS["states"])), torch.bfloat16)
        check_capture(lambda: mamba_split_conv1d_scan_combined(**inputs))
        inputs["zxbcdt"].requires_grad_()

        def train() -> tuple[torch.Tensor, ...]:
            out, _ = mamba_split_conv1d_scan_combined(**inputs)
            return torch.autograd.grad(out, [inputs["zxbcdt"]], torch.ones_like(out))

        check_capture(train)


def golden_arguments() -> tuple[Tensors, dict[str, torch.Tensor]]:
    golden = load_file(DATA / "mamba_mixer.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in golden.items() if k.startswith("weight.")}
    arguments = {
        "zxbcdt": golden["input"] @ weights["in_proj.weight"].T,
        "conv1d_weight": weights["conv1d.weight"][:, 0],
        "conv1d_bias": weights["conv1d.bias"],
        "dt_bias": weights["dt_bias"],
        "A": -torch.exp(weights["A_log"]),
        "D": weights["D"],
        "chunk_size": 32,
        "rmsnorm_weight": weights["norm.weight"],
        "rmsnorm_eps": 1e-5,
        "outproj_weight": weights["out_proj.weight"],
        "headdim": 80,
        "ngroups": 2,
        "norm_before_gate": False,
    }
    return arguments, golden


@pytest.mark.usefixtures("backend")
def test_golden_mixer() -> None:
    arguments, golden = on_device(golden_arguments())
    out, final = mamba_split_conv1d_scan_combined(**arguments, return_final_states=True)
    torch.testing.assert_close(out, golden["fused_training_output"], rtol=0, atol=2e-4)
    torch.testing.assert_close(out, golden["output"], rtol=0, atol=2e-4)
    torch.testing.assert_close(final, golden["ssm_state"], rtol=0, atol=1e-4)
    normed = mamba_split_conv1d_scan_combined(**{**arguments, "outproj_weight": None})
    torch.testing.assert_close(normed, golden["gated_norm_output"], rtol=0, atol=2e-4)


@pytest.mark.usefixtures("backend")
def test_golden_packed_run() -> None:
    arguments, golden = on_device(golden_arguments())
    packed = mamba_split_conv1d_scan_combined(
        **{**arguments, "zxbcdt": arguments["zxbcdt"][:1], "seq_idx": golden["packed_seq_idx"]}
    )
    torch.testing.assert_close(packed, golden["packed_output"], rtol=0, atol=2e-4)


@pytest.mark.usefixtures("backend")
def test_compiles_to_one_graph() -> None:
    inputs = cast(on_device(mixer_inputs(**VARIANTS["beside an MLP"])), torch.float32)
    want = mamba_split_conv1d_scan_combined(**inputs)
    for compiler in compilers():
        torch._dynamo.reset()
        run = torch.compile(mamba_split_conv1d_scan_combined, fullgraph=True, backend=compiler)
        torch.testing.assert_close(run(**inputs), want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("backend")
def test_shapes_on_the_meta_device() -> None:
    inputs = mixer_inputs(d_mlp=6)
    inputs = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    assert mamba_split_conv1d_scan_combined(**inputs).shape == (2, 40, 7)


BAD: dict[str, tuple[Tensors, str]] = {
    "zxbcdt dims": ({"zxbcdt": torch.zeros(40, 48)}, r"zxbcdt must be \(batch, seqlen, columns\)"),
    "zxbcdt dtype": ({"zxbcdt": torch.zeros(2, 40, 48).int()}, "zxbcdt must be of dtype float32"),
    "zxbcdt odd": ({"zxbcdt": torch.zeros(2, 40, 49)}, "zxbcdt must have 48 columns, or an even"),
    "zxbcdt narrow": ({"zxbcdt": torch.zeros(2, 40, 46)}, "zxbcdt must have 48 columns"),
    "D dims": ({"D": torch.zeros(2, 2, 3)}, r"D must be \(nheads,\) or \(nheads, headdim\)"),
    "initial_conv_states": (
        {"initial_conv_states": CONV_STATE[..., 1:]},
        r"initial_conv_states must be \(batch, dim \+ 2 \* ngroups \* d_state, width - 1\) =",
    ),
    "initial_conv_states dtype": (
        {"initial_conv_states": CONV_STATE.half()},
        "initial_conv_states must be of dtype float64, got float16",
    ),
    "headdim": ({"D": torch.zeros(4)}, r"headdim must be given with D \(nheads,\), got None"),
    "ngroups": ({"ngroups": 3}, "ngroups must divide nheads = 4, got 3"),
    "conv1d_weight dims": (
        {"conv1d_weight": torch.zeros(32, 1, 4)},
        r"conv1d_weight must be \(dim \+ 2 \* ngroups \* d_state, width\)",
    ),
    "conv1d_weight rows": (
        {"conv1d_weight": torch.zeros(34, 4)},
        r"conv1d_weight must have 12 \+ 2 \* 2 \* d_state rows .*, got shape \(34, 4\)",
    ),
    "rmsnorm_weight": ({"rmsnorm_weight": torch.zeros(6)}, r"rmsnorm_weight must be \(dim,\)"),
    "outproj_weight": (
        {"outproj_weight": torch.zeros(12, 7)},
        r"outproj_weight must be \(d_out, d_mlp \+ dim\) = \(any, 12\)",
    ),
    "outproj_bias": ({"outproj_bias": torch.zeros(8)}, r"outproj_bias must be \(d_out,\) = \(7\)"),
    "outproj_bias alone": (
        {"outproj_weight": None},
        "outproj_bias must be None without outproj_weight, got a tensor",
    ),
    "outproj dtype": (
        {"outproj_weight": torch.zeros(7, 12).int()},
        "outproj_weight must be of dtype float32",
    ),
    "device": (
        {"outproj_bias": torch.zeros(7, device="meta")},
        r"outproj_bias must lie on the device of zxbcdt \(cpu\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_argument_rule_and_value(case: str) -> None:
    changes, words = BAD[case]
    with pytest.raises(ValueError, match=f"mamba_split_conv1d_scan_combined: {words}"):
        mamba_split_conv1d_scan_combined(**{**mixer_inputs(), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"A": torch.zeros(5)}, r"mamba_chunk_scan_combined: A must be \(nheads,\)"),
        ({"activation": "gelu"}, "causal_conv1d_fn: activation must"),
        (
            {"state_dtype": torch.int32},
            "mamba_chunk_scan_combined: state_dtype must be None, float",
        ),
        ({"chunk_size": 0}, "mamba_chunk_scan_combined: chunk_size must be a positive int"),
    ],
)
def test_the_parts_check_the_rest(changes: Tensors, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mamba_split_conv1d_scan_combined(**{**mixer_inputs(), **changes})
