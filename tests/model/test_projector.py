"""The projector against what upstream TimeViper computed, and against plain formulas."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import DATA
from timeviper_fast.config import ProjectorConfig
from timeviper_fast.model.projector import Projector

Tensors = dict[str, torch.Tensor]


def with_weights(config: ProjectorConfig, tensors: Tensors, prefix: str) -> Projector:
    """Our projector with a golden's weights, renamed by hand."""
    weights = {
        name.replace(prefix, "layers."): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    first, last = weights["layers.0.weight"], list(weights.values())[-1]
    projector = Projector(config, first.shape[1], last.shape[0])
    projector.load_state_dict(weights)
    return projector


def assert_same_up_to_ties(
    got: torch.Tensor, want: torch.Tensor, sizes: torch.Tensor, atol: float
) -> None:
    """Rows of `got` and `want` agree; rows whose tokens hold equally many patches may swap."""
    for size in sizes.unique():
        rows = sizes == size
        distance = torch.cdist(got[rows], want[rows], p=math.inf)
        nearest = distance.argmin(1)
        assert nearest.sort().values.equal(torch.arange(len(nearest)))
        assert distance.gather(1, nearest[:, None]).max() < atol


CASES = [
    ("tome_siglip729", "random"),
    ("tome_siglip729", "clustered"),
    ("tome_vit256", "random"),
    ("tome_clip1024", "random"),
    ("tome_odd51_fused", "random"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_equals_upstream(name: str, kind: str) -> None:
    tensors = load_file(DATA / f"{name}.safetensors")
    about = json.loads((DATA / f"{name}.json").read_text())
    clip = 4 if about["clip_mode"] else 1
    for order in about["token_orders"]:
        config = ProjectorConfig(
            about["mlp_type"], about["target_tokens"] // clip, clip, token_order=order
        )
        projector = with_weights(config, tensors, "weight.projector.")
        x = tensors[f"{kind}.x"]
        # a clip of the golden is one long row of patches; ours comes as frames
        features = x.reshape(x.shape[0] * clip, -1, x.shape[-1])
        tokens = projector(features)
        assert tokens.shape == (len(features), config.num_tokens, about["llm_dim"])
        want = tensors[f"{kind}.{order}.projected"]
        got = tokens.reshape(want.shape)
        if order == "raw":
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
            continue
        sizes = tensors[f"{kind}.raw.size"].sort(1, descending=order == "descending").values
        for row in range(len(want)):
            assert_same_up_to_ties(got[row], want[row], sizes[row], 1e-5)


@torch.no_grad()
def test_equals_upstream_end_to_end() -> None:
    tensors = load_file(DATA / "vlm_generate.safetensors")
    projector = with_weights(ProjectorConfig(num_tokens=4), tensors, "projector.projector.")
    torch.testing.assert_close(
        projector(tensors["features"]), tensors["visual_embeddings"], rtol=0, atol=1e-5
    )


def erf_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@torch.no_grad()
def test_gelu_mlp_projects_every_patch() -> None:
    torch.manual_seed(0)
    projector = Projector(ProjectorConfig("gelu_mlp"), 6, 10).double()
    x = torch.randn(3, 7, 6, dtype=torch.float64) * 3
    w = projector.state_dict()
    want = erf_gelu(x @ w["layers.0.weight"].T + w["layers.0.bias"])
    want = want @ w["layers.2.weight"].T + w["layers.2.bias"]
    assert projector.merge(x) is x
    torch.testing.assert_close(projector(x), want)


def test_state_dict_names() -> None:
    def shapes(kind: str) -> dict[str, tuple[int, ...]]:
        projector = Projector(ProjectorConfig(kind), 32, 40)
        return {name: tuple(value.shape) for name, value in projector.state_dict().items()}

    two = {
        "layers.0.weight": (40, 32),
        "layers.0.bias": (40,),
        "layers.2.weight": (40, 40),
        "layers.2.bias": (40,),
    }
    assert shapes("gelu_mlp") == shapes("tome_mlp") == two
    assert shapes("fused_tome_mlp") == {
        "layers.0.weight": (128, 32),
        "layers.0.bias": (128,),
        "layers.2.weight": (40, 128),
        "layers.2.bias": (40,),
        "layers.4.weight": (40, 40),
        "layers.4.bias": (40,),
    }


@torch.no_grad()
def test_each_clip_is_merged_alone_and_frames_of_a_clip_together() -> None:
    torch.manual_seed(1)
    x = torch.randn(6, 20, 32)
    clips = Projector(ProjectorConfig(num_tokens=5, clip_frames=3), 32, 8)
    merged = clips.merge(x)
    assert merged.shape == (6, 5, 32)
    torch.testing.assert_close(merged, torch.cat([clips.merge(x[:3]), clips.merge(x[3:])]))
    frames = Projector(ProjectorConfig(num_tokens=15), 32, 8)
    together = frames.merge(x.reshape(2, 60, 32))
    assert torch.equal(merged.reshape(2, 15, 32), together)


@torch.no_grad()
def test_keeps_every_patch_when_there_is_nothing_to_merge() -> None:
    x = torch.randn(2, 16, 32)
    assert torch.equal(Projector(ProjectorConfig(num_tokens=16), 32, 8).merge(x), x)


@torch.no_grad()
def test_dtype_is_kept() -> None:
    projector = Projector(ProjectorConfig(num_tokens=4), 32, 8).bfloat16()
    tokens = projector(torch.randn(2, 20, 32, dtype=torch.bfloat16))
    assert tokens.dtype == torch.bfloat16
    assert tokens.isfinite().all()


def test_every_weight_and_feature_gets_a_gradient() -> None:
    torch.manual_seed(2)
    projector = Projector(ProjectorConfig("fused_tome_mlp", 4), 32, 8)
    x = torch.randn(2, 20, 32, requires_grad=True)
    projector(x).square().sum().backward()
    for tensor in (x, *projector.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_features_of_another_width() -> None:
    projector = Projector(ProjectorConfig(num_tokens=4), 32, 8)
    for shape in [(2, 20, 16), (20, 32)]:
        with pytest.raises(ValueError, match=r"features must be \(frames, patches, 32\), got"):
            projector(torch.zeros(shape))


def test_frames_that_do_not_fill_a_clip() -> None:
    projector = Projector(ProjectorConfig(num_tokens=4, clip_frames=4), 32, 8)
    with pytest.raises(ValueError, match=r"whole clips of 4 .*got 6; repeat the last frame"):
        projector(torch.zeros(6, 20, 32))


def test_fewer_patches_than_tokens() -> None:
    projector = Projector(ProjectorConfig(num_tokens=21), 32, 8)
    with pytest.raises(ValueError, match="num_tokens must"):
        projector(torch.zeros(2, 20, 32))


def test_real_sizes_on_the_meta_device() -> None:
    with torch.device("meta"):
        projector = Projector(ProjectorConfig(), 1152, 4480)
        tokens = projector(torch.empty(3, 729, 1152))
    assert tokens.shape == (3, 16, 4480)


@torch.no_grad()
def test_compiles_whole() -> None:
    projector = Projector(ProjectorConfig(num_tokens=4), 32, 8)
    compiled = torch.compile(projector, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 20, 32)
    torch.testing.assert_close(compiled(x), projector(x))


@pytest.mark.parametrize(
    ("name", "clip"),
    [("vcf_merge_784", 4), ("vcf_merge_1024", 4), ("vcf_merge_3136", 4), ("vcf_merge_196", 1)],
)
@torch.no_grad()
def test_equals_videochat_flash(name: str, clip: int) -> None:
    """64 tokens of a clip of four frames, and 64 of an image."""
    tensors = load_file(DATA / f"{name}.safetensors")
    heads = json.loads((DATA / f"{name}.json").read_text())["config"]["merge_heads"]
    config = ProjectorConfig(clip_frames=4, merge_heads=heads, image_tokens=64)
    projector = with_weights(config, tensors, "model.mm_projector.mlp.")
    x = tensors["features"]
    features = x.reshape(len(x) * clip, -1, x.shape[-1])
    tokens = projector(features, images=clip == 1)
    assert tokens.shape[:2] == (len(features), 64 // clip)
    want = tensors["projected"]
    torch.testing.assert_close(tokens.reshape(want.shape), want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_are_merged_alone() -> None:
    """TimeViper merges an image of a clip encoder to as many tokens as a frame has."""
    torch.manual_seed(3)
    x = torch.randn(3, 20, 32)
    projector = Projector(ProjectorConfig(num_tokens=5, clip_frames=2), 32, 8)
    tokens = projector(x, images=True)
    assert tokens.shape == (3, 5, 8)
    torch.testing.assert_close(tokens[1:2], projector(x[1:2], images=True))
    assert torch.equal(projector.merge(x[:2], images=True)[0], projector.merge(x[:1], True)[0])


@pytest.mark.parametrize("case", range(4))
@torch.no_grad()
def test_pixel_shuffle_equals_the_recorded_one(case: int) -> None:
    stored = load_file(DATA / "nemotron_vl_projector.safetensors")
    weights = {
        f"layers.{name.removeprefix('mlp1.')}": value
        for name, value in stored.items()
        if name.startswith("mlp1.")
    }
    grid = stored[f"case{case}.grid"]
    inner, merged = weights["layers.1.weight"].shape
    config = ProjectorConfig(kind="pixel_shuffle_mlp", inner_size=inner)
    projector = Projector(config, grid.shape[-1], weights["layers.3.weight"].shape[0])
    projector.load_state_dict(weights)
    shape = tuple(grid.shape[1:3])
    shuffled = projector.merge(grid.flatten(1, 2), grid=shape)
    assert shuffled.shape[-1] == merged
    assert torch.equal(shuffled, stored[f"case{case}.shuffled"].flatten(1, 2))
    want = stored[f"case{case}.projected"]
    got = projector(grid.flatten(1, 2), grid=shape)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))
    if shape[0] == shape[1]:
        assert torch.equal(projector(grid.flatten(1, 2)), got)


@pytest.mark.parametrize(("patches", "grid", "got"), [(12, None, "3 x 3"), (12, (3, 4), "3 x 4")])
def test_pixel_shuffle_needs_even_sides(patches, grid, got) -> None:
    projector = Projector(ProjectorConfig(kind="pixel_shuffle_mlp", inner_size=8), 6, 10)
    words = f"grid must be even rows and columns of the {patches} patches, got {got}"
    with pytest.raises(ValueError, match=words):
        projector.merge(torch.zeros(1, patches, 6), grid=grid)
