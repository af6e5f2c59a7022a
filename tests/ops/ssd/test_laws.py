"""The laws of the Mamba-2 scan: cut, packed, grouped or stepped, it is the same scan."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import cast, device
from tests.ops.common import law
from tests.ops.ssd.common import bare_inputs, packed, scan_inputs
from tvkernels.selective_state_update import selective_state_update
from tvkernels.ssd import mamba_chunk_scan_combined

pytestmark = pytest.mark.usefixtures("backend")


@law
@given(st.integers(1, 100), st.integers(1, 300))
def test_chunk_size_is_a_hint(seqlen: int, chunk_size: int) -> None:
    inputs = scan_inputs(seqlen=seqlen)
    results = zip(
        mamba_chunk_scan_combined(**inputs),
        mamba_chunk_scan_combined(**{**inputs, "chunk_size": chunk_size}),
    )
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in results)


@law
@given(st.integers(0, 320), st.integers(0, 320), st.booleans())
def test_split_anywhere_and_carried_on_is_the_whole(cut: int, rest: int, numbered: bool) -> None:
    inputs = scan_inputs(batch=1, nheads=2, seqlen=cut + rest)
    if numbered:
        inputs["seq_idx"] = torch.arange(cut + rest, device=device())[None] // 37
    whole, final = mamba_chunk_scan_combined(**inputs)

    def part(tokens: slice, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of_tokens = ("x", "dt", "B", "C", "z", "seq_idx")
        cut_inputs = {k: v[:, tokens] if k in of_tokens else v for k, v in inputs.items()}
        return mamba_chunk_scan_combined(**{**cut_inputs, "initial_states": state})

    before, state = part(slice(0, cut), inputs["initial_states"])
    if numbered and cut and rest and cut % 37 == 0:
        state = torch.zeros_like(state)
    after, last = part(slice(cut, None), state)
    torch.testing.assert_close(torch.cat([before, after], 1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, final, rtol=1e-10, atol=1e-10)


@law
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6))
def test_packed_is_each_sequence_alone(lengths: list[int]) -> None:
    seq_idx, cu_seqlens = packed(lengths)
    inputs = bare_inputs(sum(lengths), batch=1, nheads=2, return_final_states=False)
    out, states = mamba_chunk_scan_combined(
        **inputs, seq_idx=seq_idx, cu_seqlens=cu_seqlens, return_varlen_states=True
    )
    _, unnumbered = mamba_chunk_scan_combined(
        **inputs, cu_seqlens=cu_seqlens, return_varlen_states=True
    )
    for i, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        alone = {
            k: v[:, start:stop] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()
        }
        truth, state = mamba_chunk_scan_combined(**{**alone, "return_final_states": True})
        torch.testing.assert_close(out[:, start:stop], truth, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(states[i], state[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(unnumbered[i], state[0], rtol=1e-10, atol=1e-10)


@law
@given(st.integers(1, 80), st.sampled_from([1, 2, 4]))
def test_groups_are_independent(seqlen: int, ngroups: int) -> None:
    inputs = scan_inputs(seqlen=seqlen, ngroups=ngroups)
    whole = mamba_chunk_scan_combined(**inputs)
    for group in range(ngroups):
        heads = slice(group * 4 // ngroups, (group + 1) * 4 // ngroups)
        own = {**inputs, "B": inputs["B"][:, :, group : group + 1]}
        own["C"] = inputs["C"][:, :, group : group + 1]
        own.update({k: inputs[k][:, :, heads] for k in ("x", "dt", "z")})
        own.update({k: inputs[k][heads] for k in ("A", "D", "dt_bias")})
        own["initial_states"] = inputs["initial_states"][:, heads]
        out, final = mamba_chunk_scan_combined(**own)
        torch.testing.assert_close(out, whole[0][:, :, heads], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(final, whole[1][:, heads], rtol=1e-10, atol=1e-10)


@law
@given(st.integers(1, 60))
def test_scan_is_as_many_single_steps(seqlen: int) -> None:
    inputs = cast(scan_inputs(seqlen=seqlen), torch.float32)
    out, final = mamba_chunk_scan_combined(**inputs)
    state = inputs["initial_states"].clone()
    wide = {k: inputs[k][:, None].expand(4, 5) for k in ("D", "dt_bias")}
    A = inputs["A"][:, None, None].expand(4, 5, 6)
    for t in range(seqlen):
        x, dt, B, C, z = (inputs[k][:, t] for k in ("x", "dt", "B", "C", "z"))
        step = selective_state_update(
            state, x, dt[..., None].expand(x.shape), A, B, C, z=z, dt_softplus=True, **wide
        )
        torch.testing.assert_close(out[:, t], step, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final, state, rtol=1e-4, atol=1e-4)
