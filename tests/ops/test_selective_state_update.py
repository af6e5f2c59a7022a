"""selective_state_update against a float64 recurrence, a golden's decode steps, and its laws."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import assert_close_by_rule, check_contract, compilers, device, on_device
from tests.footprint import largest_tensor
from tests.ops.common import DATA, DTYPES, exact, law, randn
from tvkernels.causal_conv1d import causal_conv1d_update
from tvkernels.core.backend import use_backend
from tvkernels.rmsnorm import rmsnorm_fn
from tvkernels.selective_state_update import selective_state_update


def naive_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One entry, head and channel at a time, in one wide dtype; (out, new state). Heads given."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out, after = torch.zeros_like(x), state.clone()
    (batch, nheads, dim), ngroups = x.shape, B.shape[1]
    for b in range(batch):
        row = b if state_batch_indices is None else int(state_batch_indices[b])
        for h in range(nheads if row >= 0 else 0):
            g = h * ngroups // nheads
            for p in range(dim):
                step = dt[b, h, p].to(wide)
                step = step if dt_bias is None else step + dt_bias[h, p].to(wide)
                if dt_softplus and step <= 20:
                    step = torch.log1p(torch.exp(step))
                new = torch.exp(step * A[h, p].to(wide)) * state[row, h, p].to(wide)
                new = new + step * x[b, h, p].to(wide) * B[b, g].to(wide)
                y = (new * C[b, g].to(wide)).sum()
                if D is not None:
                    y = y + D[h, p].to(wide) * x[b, h, p].to(wide)
                if z is not None:
                    gate = z[b, h, p].to(wide)
                    y = y * gate / (1 + torch.exp(-gate))
                out[b, h, p], after[row, h, p] = y.to(x.dtype), new.to(state.dtype)
    return out, after


def run(state: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mine = state.clone()
    return selective_state_update(mine, **inputs), mine


def step_inputs(**changes: Any) -> dict[str, Any]:
    inputs = {
        "state": randn(2, 4, 5, 6, seed=1),
        "x": randn(2, 4, 5, seed=2),
        "dt": randn(2, 4, 5, seed=3),
        "A": -randn(4, 5, 6, seed=4).exp(),
        "B": randn(2, 2, 6, seed=5),
        "C": randn(2, 2, 6, seed=6),
        "D": randn(4, 5, seed=7),
        "z": randn(2, 4, 5, seed=8),
        "dt_bias": randn(4, 5, seed=9),
        "dt_softplus": True,
    }
    return {**inputs, **on_device(changes)}


def sized(batch: int, nheads: int, ngroups: int, dim: int, dstate: int) -> dict[str, Any]:
    """Inputs of another size, nothing shared."""
    return step_inputs(
        state=randn(batch, nheads, dim, dstate, seed=1),
        x=randn(batch, nheads, dim, seed=2),
        dt=randn(batch, nheads, dim, seed=3),
        A=-randn(nheads, dim, dstate, seed=4).exp(),
        B=randn(batch, ngroups, dstate, seed=5),
        C=randn(batch, ngroups, dstate, seed=6),
        D=randn(nheads, dim, seed=7),
        z=randn(batch, nheads, dim, seed=8),
        dt_bias=randn(nheads, dim, seed=9),
    )


# what a Mamba-2 layer passes: one value per head, expanded over its channels and states
PER_HEAD = {
    "dt": randn(2, 4, 1, seed=3).expand(2, 4, 5),
    "A": (-randn(4, 1, 1, seed=4).exp()).expand(4, 5, 6),
    "D": randn(4, 1, seed=7).expand(4, 5),
    "dt_bias": randn(4, 1, seed=9).expand(4, 5),
}
ROWS = {"state": randn(5, 4, 5, 6, seed=1)}
VARIANTS = {
    "full": {},
    "bare": {
        # without a softplus the step has to be positive as it comes
        "dt": randn(2, 4, 5, seed=3).abs(),
        "D": None,
        "z": None,
        "dt_bias": None,
        "dt_softplus": False,
    },
    "per head": PER_HEAD,
    "per head, full dt": {**PER_HEAD, "dt": randn(2, 4, 5, seed=3)},
    "per head, full bias": {**PER_HEAD, "dt_bias": randn(4, 5, seed=9)},
    "per head, no bias": {**PER_HEAD, "dt_bias": None},
    "A of a channel": {**PER_HEAD, "A": (-randn(4, 5, 1, seed=4).exp()).expand(4, 5, 6)},
    "A of a state": {**PER_HEAD, "A": (-randn(4, 1, 6, seed=4).exp()).expand(4, 5, 6)},
    "long steps": {"dt": 30 * randn(2, 4, 5, seed=3).abs()},
    "one group": {"B": randn(2, 1, 6), "C": randn(2, 1, 6, seed=1)},
    "group per head": {"B": randn(2, 4, 6), "C": randn(2, 4, 6, seed=1)},
    "rows": {**ROWS, "state_batch_indices": torch.tensor([4, 1], dtype=torch.int32)},
    "padding": {**ROWS, "state_batch_indices": torch.tensor([-1, 3])},
    "padding beside row 0": {**ROWS, "state_batch_indices": torch.tensor([0, -1])},
    "only padding": {**ROWS, "state_batch_indices": torch.tensor([-1, -7])},
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    check_contract(run, naive_step, step_inputs(**VARIANTS[variant]), dtype=dtype)


SIZES = {
    "headdim 80": (1, 2, 1, 80, 128),
    "headdim 64": (1, 1, 1, 64, 16),
    "several programs, none full": (2, 4, 2, 37, 100),
    "one channel": (2, 2, 1, 1, 3),
    "one state": (2, 2, 1, 9, 1),
    "many states": (1, 2, 2, 3, 300),
    "one head": (3, 1, 1, 70, 40),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: str) -> None:
    check_contract(run, naive_step, sized(*SIZES[size]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_state_beside_16_bit_tokens(backend: str, dtype: torch.dtype) -> None:
    inputs = step_inputs(**PER_HEAD)
    small = {k: v.to(dtype) if k in ("x", "B", "C", "z", "dt") else v for k, v in inputs.items()}
    small = {
        k: v.float() if getattr(v, "dtype", None) == torch.float64 else v for k, v in small.items()
    }
    truth = naive_step(
        **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in small.items()}
    )
    plain, plain_state = naive_step(**small)
    out, state = run(**small)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    assert_close_by_rule(out, plain, truth[0], "out")
    assert_close_by_rule(state, plain_state, truth[1], "state")


def test_output_is_read_before_the_state_is_rounded(backend: str) -> None:
    inputs = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in step_inputs().items()}
    state = inputs["state"].bfloat16()
    out, _ = run(**{**inputs, "state": state})
    expected, _ = run(**{**inputs, "state": state.float()})
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


LAYOUTS = {
    "dstate first": lambda: randn(2, 4, 6, 5).mT,
    "slices": lambda: randn(2, 8, 10, 12)[:, ::2, 3:8, ::2],
    "batch last": lambda: randn(4, 5, 6, 2).permute(3, 0, 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    packed = randn(2, 60, seed=11)
    inputs = step_inputs(
        x=packed[:, :20].view(2, 4, 5),
        z=packed[:, 20:40].view(2, 4, 5),
        B=randn(2, 6, 2).mT,
        C=randn(6).expand(2, 2, 6),
    )
    out, after = naive_step(**inputs)
    state = LAYOUTS[layout]().copy_(inputs["state"])
    got = selective_state_update(**{**inputs, "state": state})
    torch.testing.assert_close(got, out, **exact)
    torch.testing.assert_close(state, after, **exact)


def test_one_head_without_its_dimension(backend: str) -> None:
    whole = step_inputs()
    with_head = {
        name: t if t is None or isinstance(t, bool) else (t[:, :1] if t.shape[0] == 2 else t[:1])
        for name, t in whole.items()
    }
    out, after = naive_step(**with_head)
    bare = {
        name: t if isinstance(t, bool) else (t[:, 0] if t.shape[0] == 2 else t[0])
        for name, t in with_head.items()
    }
    state = bare.pop("state").clone()
    got = selective_state_update(state, **bare)
    assert got.shape == (2, 5)
    torch.testing.assert_close(got, out[:, 0], **exact)
    torch.testing.assert_close(state, after[:, 0], **exact)


def test_shared_values_are_computed_once_per_head() -> None:
    batch, nheads, dim, dstate = 1, 3, 16, 32
    shared = {"A": -torch.ones(nheads, 1, 1).expand(nheads, dim, dstate).contiguous()}
    expanded = {"A": (-torch.ones(nheads, 1, 1)).expand(nheads, dim, dstate)}
    tokens = torch.ones(batch, nheads, 1).expand(batch, nheads, dim)
    states = torch.ones(batch, 1, dstate)

    def exps(A: torch.Tensor) -> int:
        sizes = []
        real = torch.exp
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "exp", lambda t: sizes.append(t.numel()) or real(t))
            state = torch.zeros(batch, nheads, dim, dstate)
            selective_state_update(state, tokens, tokens, A, states, states)
        return sum(sizes)

    assert exps(**shared) == nheads * dim * dstate
    assert exps(**expanded) == nheads


def test_allocates_no_more_than_one_state() -> None:
    state = torch.zeros(2, 4, 5, 600)
    x, B = torch.ones(2, 4, 5), torch.ones(2, 2, 600)
    A = -torch.ones(4, 5, 600)
    assert largest_tensor(lambda: selective_state_update(state, x, x, A, B, B)) == state.numel()


def test_golden_decode_steps_of_the_mixer(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    weight = {k.removeprefix("weight."): v for k, v in golden.items() if k.startswith("weight.")}
    heads, headdim, groups, dstate = 4, 80, 2, 32
    conv_state, ssm_state = golden["conv_state"].clone(), golden["ssm_state"].clone()
    A = (-weight["A_log"].exp())[:, None, None].expand(heads, headdim, dstate)
    D, dt_bias = (weight[name][:, None].expand(heads, headdim) for name in ("D", "dt_bias"))
    outs = []
    for u in golden["step_input"].unbind(1):
        z, xbc, dt = (u @ weight["in_proj.weight"].T).split([320, 448, 4], dim=-1)
        taps, bias = weight["conv1d.weight"].squeeze(1), weight["conv1d.bias"]
        with use_backend("reference"):
            xbc = causal_conv1d_update(xbc, conv_state, taps, bias, "silu")
        x, B, C = xbc.split([320, 64, 64], dim=-1)
        y = selective_state_update(
            ssm_state,
            x.view(-1, heads, headdim),
            dt[:, :, None].expand(-1, heads, headdim),
            A,
            B.view(-1, groups, dstate),
            C.view(-1, groups, dstate),
            D,
            dt_bias=dt_bias,
            dt_softplus=True,
        )
        y = rmsnorm_fn(y.flatten(1), weight["norm.weight"], None, z, 1e-5, 160, False)
        outs.append(y @ weight["out_proj.weight"].T)
    torch.testing.assert_close(torch.stack(outs, 1), golden["step_output"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ssm_state, golden["ssm_state_after_steps"], atol=2e-5, rtol=0)


@law
@given(
    steps=st.integers(1, 6),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    dim=st.integers(1, 4),
    dstate=st.integers(1, 5),
)
def test_law_n_steps_are_the_written_out_sum(
    backend: str, steps: int, groups: int, per_group: int, dim: int, dstate: int
) -> None:
    """y_t = sum over s <= t of C_t . B_s exp(A (dt_{s+1} + ... + dt_t)) dt_s x_s."""
    nheads = groups * per_group
    x, dt = randn(steps, nheads, dim), randn(steps, nheads, dim, seed=1).exp()
    A = -randn(nheads, dim, dstate, seed=2).exp()
    B, C = randn(steps, groups, dstate, seed=3), randn(steps, groups, dstate, seed=4)
    wide_B, wide_C = (t.repeat_interleave(per_group, 1)[:, :, None] for t in (B, C))
    state = torch.zeros(1, nheads, dim, dstate, dtype=x.dtype, device=device())
    for t in range(steps):
        y = selective_state_update(
            state, x[t : t + 1], dt[t : t + 1], A, B[t : t + 1], C[t : t + 1]
        )
        expected = torch.zeros_like(state[0])
        for s in range(t + 1):
            decay = torch.exp(A * dt[s + 1 : t + 1].sum(0)[..., None])
            expected += decay * (dt[s] * x[s])[..., None] * wide_B[s]
        torch.testing.assert_close(state[0], expected, **exact)
        torch.testing.assert_close(y[0], (expected * wide_C[t]).sum(-1), **exact)


@law
@given(group=st.integers(0, 1), scale=st.floats(-3, 3))
def test_law_groups_are_independent(backend: str, group: int, scale: float) -> None:
    inputs = step_inputs()
    out, state = run(**inputs)
    changed = inputs["B"].clone()
    changed[:, group] *= scale
    other_out, other_state = run(**{**inputs, "B": changed})
    others = slice(2, 4) if group == 0 else slice(0, 2)
    assert torch.equal(out[:, others], other_out[:, others])
    assert torch.equal(state[:, others], other_state[:, others])


@law
@given(order=st.permutations(range(4)), padded=st.sets(st.integers(0, 3)))
def test_law_rows_are_each_alone(backend: str, order: list[int], padded: set[int]) -> None:
    pool = randn(6, 2, 3, 4)
    x, A = randn(4, 2, 3, seed=1), -randn(2, 3, 4, seed=2).exp()
    B, C = randn(4, 1, 4, seed=3), randn(4, 1, 4, seed=4)
    rows = [-1 if i in padded else order[i] + 1 for i in range(4)]
    state = pool.clone()
    indices = torch.tensor(rows, device=device())
    out = selective_state_update(state, x, x, A, B, C, state_batch_indices=indices)
    expected = pool.clone()
    for i, row in enumerate(rows):
        alone = torch.zeros_like(x[i])
        if row >= 0:
            one = slice(i, i + 1)
            after = expected[row : row + 1].clone()
            alone = selective_state_update(after, x[one], x[one], A, B[one], C[one])[0]
            expected[row] = after[0]
        torch.testing.assert_close(out[i], alone, **exact)
    torch.testing.assert_close(state, expected, **exact)


def test_is_for_inference(backend: str) -> None:
    inputs = step_inputs()
    inputs["x"].requires_grad_()
    out, state = run(**inputs)
    assert not out.requires_grad
    assert not state.requires_grad


def test_parameters_can_be_read_by_name() -> None:
    names = "state x dt A B C D z dt_bias dt_softplus state_batch_indices"
    assert list(inspect.signature(selective_state_update).parameters) == names.split()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("variant", ["full", "per head", "rows"])
def test_compiles_in_one_graph(variant: str) -> None:
    inputs = step_inputs(**VARIANTS[variant])
    start = inputs.pop("state")
    expected, after = run(start, **inputs)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        state = start.clone()
        step = torch.compile(selective_state_update, fullgraph=True, backend=compiler)
        torch.testing.assert_close(step(state, **inputs), expected, **exact)
        torch.testing.assert_close(state, after, **exact)


def test_meta_tensors() -> None:
    inputs = step_inputs(**VARIANTS["rows"])
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    out = selective_state_update(**meta)
    assert (out.shape, out.dtype, out.device.type) == ((2, 4, 5), torch.float64, "meta")


INDICES = torch.zeros(2, dtype=torch.int32)
T = torch.zeros
ERRORS = [
    ({"state": T(2, 5)}, r"state must be \(batch, dim, dstate\) or \(batch, nheads, dim, dstate\)"),
    ({"x": T(2, 1, 4, 5)}, r"x must be \(batch, dim\) or \(batch, nheads, dim\), got shape"),
    ({"x": T(2, 3, 5)}, r"x must be \(batch, nheads, dim\) = \(2, 4, 5\), got shape \(2, 3, 5\)"),
    ({"dt": T(2, 4, 4)}, r"dt must be \(batch, nheads, dim\) = \(2, 4, 5\), got shape \(2, 4, 4\)"),
    ({"A": T(4, 5, 1)}, r"A must be \(nheads, dim, dstate\) = \(4, 5, 6\), got shape \(4, 5, 1\)"),
    ({"B": T(2, 2, 5)}, r"B must be \(batch, ngroups, dstate\) = \(2, any, 6\)"),
    ({"B": T(2, 3, 6)}, "B must have ngroups that divide nheads = 4, got 3"),
    ({"B": T(2, 0, 6)}, "B must have ngroups that divide nheads = 4, got 0"),
    ({"C": T(2, 1, 6)}, r"C must be the shape of B = \(2, 2, 6\), got shape \(2, 1, 6\)"),
    ({"D": T(4)}, r"D must be \(nheads, dim\) = \(4, 5\), got shape \(1, 4\)"),
    ({"dt_bias": T(5, 4)}, r"dt_bias must be \(nheads, dim\) = \(4, 5\), got shape \(5, 4\)"),
    ({"z": T(1, 4, 5)}, r"z must be \(batch, nheads, dim\) = \(2, 4, 5\), got shape \(1, 4, 5\)"),
    ({"x": T(2, 4, 5).int()}, "selective_state_update: x must be of dtype .*, got int32"),
    ({"state": T(2, 4, 5, 6).int()}, "state must be of dtype .*, got int32"),
    ({"A": T(4, 5, 6, device="meta")}, r"A must lie on the device of state \(cpu\), got meta"),
    ({"state_batch_indices": INDICES[:1]}, r"state_batch_indices must be \(batch,\) = \(2\)"),
    (
        {"state_batch_indices": torch.tensor([2, 0])},
        r"state_batch_indices must be below 2 \(the rows of the state\), got \[2, 0\]",
    ),
    ({"state_batch_indices": T(2)}, "state_batch_indices must be of dtype int32, int64"),
    (
        {"state": T(3, 4, 5, 6)},
        "state must have batch = 2 rows, as x, got 3; name the rows in state_batch_indices",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), ERRORS)
def test_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(**{**step_inputs(), **changes})
