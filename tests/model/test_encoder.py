"""What holds for every vision encoder: clips, images, errors, gradients, dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.contract import errors
from timeviper_fast.config import VisionConfig
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.model.vision.encoder import VisionEncoder, resize_grid

KINDS = ("siglip", "dinov2", "umt", "internvideo2", "radio")


def small(kind: str) -> VisionConfig:
    return VisionConfig(
        kind=kind,
        image_size=28 if kind == "radio" else 30,
        patch_size=7,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        clip_frames=2 if kind in ("umt", "internvideo2") else 1,
        register_tokens=2 if kind in ("dinov2", "radio") else 0,
        position_side=5 if kind == "radio" else 0,
    )


def encoder(kind: str) -> VisionEncoder:
    model = build_encoder(small(kind))
    init_weights(model, seed=3)
    return model


def pixels(frames: int, size: int = 30) -> torch.Tensor:
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(frames))


def look(kind: str, frames: int) -> torch.Tensor:
    return pixels(frames, small(kind).image_size)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_clips_do_not_see_each_other_but_their_frames_do(kind: str) -> None:
    model, x = encoder(kind), look(kind, 6)
    clip = model.config.clip_frames
    whole = model(x)
    assert whole.shape == (6, 16, 48)
    parts = torch.cat([model(x[:2]), model(x[2:])])
    torch.testing.assert_close(whole, parts, rtol=0, atol=2e-6)
    assert model(x[:0]).shape == (0, 16, 48)
    changed = x.clone()
    changed[1] += 1
    moved = [not torch.equal(a, b) for a, b in zip(model(changed), whole)]
    assert moved == [clip == 2, True, False, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_images_are_encoded_alone(kind: str) -> None:
    model, x = encoder(kind), look(kind, 3)
    alone = torch.cat([model(one[None], images=True) for one in x])
    torch.testing.assert_close(model(x, images=True), alone, rtol=0, atol=2e-6)
    repeated = model(x[:1].repeat(model.config.clip_frames, 1, 1, 1))[0]
    assert torch.allclose(repeated, alone[0], atol=1e-4) is (model.config.clip_frames == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_and_pixel_gets_a_gradient_also_when_recomputed(kind: str) -> None:
    model, x = encoder(kind), look(kind, 2)
    # pixels beyond the last whole patch are not seen
    x = x[..., :28, :28].contiguous().requires_grad_()
    model.set_image_size(28)
    grads = []
    for recompute in (False, True):
        for block in model.blocks:
            block.gradient_checkpointing = recompute
        model.zero_grad()
        loss = model(x).square().sum() + model(x, images=True).square().sum()
        loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads[0].values())
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bfloat16_is_close_to_float64(kind: str) -> None:
    model, x = encoder(kind), look(kind, 2)
    truth = model.double()(x)
    got = model.bfloat16()(x)
    assert got.dtype == torch.bfloat16
    l2, worst = errors(got, truth)
    assert l2 < 0.02
    assert worst < 0.04


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_another_size_keeps_the_weights(kind: str) -> None:
    model = encoder(kind)
    before = dict(model.named_parameters())
    names = set(before)
    model.set_image_size(model.config.image_size)
    # an optimizer holds these very tensors
    assert all(weight is before[name] for name, weight in model.named_parameters())
    size = 42 if kind == "radio" else 44
    model.set_image_size(size)
    assert model(pixels(2, size)).shape == (2, 36, 48)
    assert {name for name, _ in model.named_parameters()} == names
    with pytest.raises(ValueError, match="patch_size must be at most image_size"):
        model.set_image_size(3)
    assert model.config.image_size == size


@pytest.mark.parametrize("kind", ["umt", "internvideo2"])
def test_frames_that_fill_no_clip(kind: str) -> None:
    words = r"pixels must come in whole clips of 2 frames, got 3 frames; .*images=True"
    with pytest.raises(ValueError, match=words):
        encoder(kind)(pixels(3))


@pytest.mark.parametrize("kind", ["umt", "internvideo2"])
@torch.no_grad()
def test_compiles_whole(kind: str) -> None:
    model, x = encoder(kind), look(kind, 2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@torch.no_grad()
def test_a_grid_is_resized_frame_by_frame() -> None:
    grid = torch.randn(1, 2 * 16, 3)
    both = resize_grid(grid, 4, 6)
    assert both.shape == (1, 2 * 36, 3)
    alone = [resize_grid(part, 4, 6) for part in grid.split(16, dim=1)]
    torch.testing.assert_close(both, torch.cat(alone, dim=1))
    assert resize_grid(grid, 4, 4) is grid


@torch.no_grad()
def test_more_frames_than_the_table_was_made_for() -> None:
    model = build_encoder(replace(small("umt"), clip_frames=8))
    assert model(pixels(8)).shape == (8, 16, 48)


class Graphs:
    """A backend of torch.compile that runs the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.count += 1
        return graph.forward


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_compile_once_and_for_their_batch_alone(kind: str) -> None:
    torch._dynamo.reset()
    model, graphs = encoder(kind), Graphs()
    batch, rest = look(kind, 4), look(kind, 2)
    expected, expected_rest = model(batch), model(rest)
    names = [*model.state_dict()]
    model.compile_blocks(4, graphs)
    assert torch.equal(model(rest), expected_rest)
    assert graphs.count == 0
    for _ in range(2):
        torch.testing.assert_close(model(batch), expected)
        assert graphs.count == 1
    assert [*model.state_dict()] == names
    torch._dynamo.reset()
