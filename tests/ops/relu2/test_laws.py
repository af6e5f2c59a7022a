"""Laws of relu2: scaling, and parts of a tensor."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.common import law, randn
from tvkernels.relu2 import relu2


@law
@given(scale=st.floats(0, 100), rows=st.integers(1, 5), width=st.integers(1, 70))
def test_law_scaling_squares(backend: str, scale: float, rows: int, width: int) -> None:
    """relu2(c x) = c^2 relu2(x) for c >= 0; of x and -x one is 0, and both make x^2."""
    x = randn(rows, width)
    torch.testing.assert_close(relu2(scale * x), scale**2 * relu2(x), atol=1e-9, rtol=1e-9)
    assert torch.equal(relu2(x) + relu2(-x), x * x)
    assert not (relu2(x) * relu2(-x)).any()


@law
@given(cut=st.integers(0, 60), dim=st.integers(0, 1))
def test_law_parts_are_each_alone(backend: str, cut: int, dim: int) -> None:
    x = randn(60, 60)
    parts = x.tensor_split([cut], dim)
    assert torch.equal(torch.cat([relu2(part) for part in parts], dim), relu2(x))
