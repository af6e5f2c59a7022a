"""Layers whose blocked rows do not see vision, against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.analysis.blocks import (
    AFTER,
    BEFORE,
    BOTH,
    LENGTH,
    SEES,
    SEGMENT,
    VISION,
    mixed,
    model,
    plainly,
    rows,
)
from timeviper_fast.analysis.blocked_layers import GRADES
from timeviper_fast.analysis.blocking import Blocking
from timeviper_fast.layout import Segment, VisualSpan

MAMBA, ATTENTION = 2, 3
TEXT = slice(SEES.stop, LENGTH)
UP_TO_VISION = slice(0, SEES.stop)


@pytest.fixture(scope="module")
def plain():
    return model()


@pytest.mark.parametrize("grade", GRADES)
def test_rows_that_are_not_blocked_are_the_layer_s_own_to_the_bit(plain, grade):
    """V2I changes the question, V2R the answer's rows alone, whichever layer and grade."""
    x, segment = rows(), Segment(LENGTH, VisualSpan(BEFORE, VISION), query_from_end=4)
    for layer in (MAMBA, ATTENTION):
        for kind, changed in (("instruction", slice(SEES.stop, -4)), ("response", slice(-4, None))):
            got = mixed(plain, layer, x, Blocking((kind,), 0, grade), segment)
            same = (got == plainly(plain, layer, x)).all(-1)[0]
            want = torch.ones(LENGTH, dtype=torch.bool)
            want[changed] = False
            assert torch.equal(same, want)


def test_attention_is_that_of_a_dense_mask(plain):
    x, mixer = rows(), plain.layers[ATTENTION].mixer
    q, k, v = (
        f(x).unflatten(-1, (-1, mixer.head_dim)) for f in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
    mask = torch.ones(LENGTH, LENGTH).tril().bool()
    mask[TEXT, SEES] = False
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / mixer.head_dim**0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    want = mixer.o_proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    torch.testing.assert_close(mixed(plain, ATTENTION, x, Blocking()), want)


def gated(mixer, y, u):
    """What the mixer makes of the scan's result (1, n, d_inner)."""
    z = mixer.in_proj(u)[..., : y.shape[-1]]
    y = (y * F.silu(z)).unflatten(-1, (mixer.config.n_groups, -1))
    y = (y * (y.square().mean(-1, keepdim=True) + mixer.norm.eps).rsqrt()).flatten(2)
    return mixer.out_proj(y * mixer.norm.weight)


def dense(mixer, u, grade):
    """The whole layer by its matrix M, with M[text, vision] = 0."""
    config, n = mixer.config, u.shape[1]
    _, xBC, dt = mixer.in_proj(u)[0].split(mixer.widths, -1)
    if grade == "edge+conv":
        xBC = xBC.clone()
        xBC[SEES] = 0
    columns = F.pad(xBC.T, (config.conv_kernel - 1, 0))[None]
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    xBC = F.silu(F.conv1d(columns, weight, bias, groups=len(weight)))[0].T
    x, B, C = mixer._split(xBC)
    dt = F.softplus(dt + mixer.dt_bias).clamp(*config.time_step_limit)
    times = (dt * -mixer.A_log.exp()).cumsum(0)
    B, C = (t.repeat_interleave(config.mamba_num_heads // config.n_groups, dim=1) for t in (B, C))
    decay = (times[:, None] - times[None]).exp()
    M = torch.einsum("ihs,jhs->ijh", C, B) * decay * dt[None]
    M = M * torch.ones(n, n).tril()[..., None]
    M[TEXT, SEES] = 0
    y = torch.einsum("ijh,jhp->ihp", M, x) + mixer.D[:, None] * x
    return gated(mixer, y.flatten(1)[None], u)


@pytest.mark.parametrize("grade", ["edge", "edge+conv"])
@torch.no_grad()
def test_the_scan_is_that_of_a_matrix_without_edges_from_vision_to_text(plain, grade):
    x = rows()
    got = mixed(plain, MAMBA, x, Blocking(grade=grade))
    torch.testing.assert_close(got[:, TEXT], dense(plain.layers[MAMBA].mixer, x, grade)[:, TEXT])


def test_absent_is_the_layer_on_a_sequence_with_vision_cut_out(plain):
    x = rows()
    cut = torch.cat([x[:, :BEFORE], x[:, TEXT]], 1)
    got = mixed(plain, MAMBA, x, Blocking(grade="absent"))
    torch.testing.assert_close(got[:, TEXT], plainly(plain, MAMBA, cut)[:, BEFORE:])


@pytest.mark.parametrize(
    ("grade", "moves"), [("edge", True), ("edge+conv", True), ("absent", False)]
)
def test_how_much_of_vision_still_moves_blocked_rows(plain, grade, moves):
    """With edge+conv no content passes, but vision's steps fade what stands in front of it."""
    x, other = rows(), rows()
    other[:, SEES] = rows(VISION, seed=1)
    one, two = (mixed(plain, MAMBA, given, Blocking(grade=grade))[:, TEXT] for given in (x, other))
    assert torch.equal(one, two) != moves
    assert not torch.equal(plainly(plain, MAMBA, x)[:, TEXT], plainly(plain, MAMBA, other)[:, TEXT])


def test_text_between_frames_is_blocked_too(plain):
    """It is text of the prompt behind vision; the first run has no vision in front of it."""
    runs = (VisualSpan(3, 8), VisualSpan(13, 10))
    segment, x = Segment.of_runs(LENGTH, runs), rows()
    for layer in (MAMBA, ATTENTION):
        got = mixed(plain, layer, x, Blocking(grade="absent"), segment)
        same = (got == plainly(plain, layer, x)).all(-1)[0]
        text = torch.ones(LENGTH, dtype=torch.bool)
        text[3:11] = text[13:23] = text[:3] = False
        assert torch.equal(same, ~text)


def test_a_layer_without_a_grade_is_not_blocked(plain):
    x = rows()
    assert torch.equal(mixed(plain, MAMBA, x, Blocking(BOTH, grade=None)), plainly(plain, MAMBA, x))
    assert SEGMENT.length == BEFORE + VISION + AFTER
