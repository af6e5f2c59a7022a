"""UMT against what VideoChat-Flash's tower computed."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden
from tests.model.encoders import flat, tower_config, tower_pixels, tower_weights
from timeviper_fast.model.vision.umt import UMT, position_table

WIDTH = 32  # of the recorded tower


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return golden("vcf_umt_tower")


def tower() -> UMT:
    model = UMT(tower_config("umt"))
    model.load_state_dict(tower_weights("umt"))
    return model


@torch.no_grad()
def test_a_clip_and_an_image(recorded: dict[str, torch.Tensor]) -> None:
    model, pixels = tower(), tower_pixels(recorded["frames_224"])
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, y: seen.append(y))
    clip, image = model(pixels), model(pixels[1:2], images=True)
    assert clip.shape == (4, 196, WIDTH)
    torch.testing.assert_close(flat(clip), recorded["features_clip_224"], rtol=0, atol=1e-5)
    torch.testing.assert_close(flat(image), recorded["features_image_224"], rtol=0, atol=1e-5)
    first = recorded["tokens_clip_224.after_block0_rows0_64"]
    torch.testing.assert_close(seen[0][:, :64], first, rtol=0, atol=1e-5)
    for i, got in enumerate(seen[3:]):
        want = recorded[f"tokens_image_224.after_block{i}"]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_another_size(recorded: dict[str, torch.Tensor]) -> None:
    model, pixels = tower(), tower_pixels(recorded["frames_other"])
    model.set_image_size(160)
    clip, image = model(pixels), model(pixels[2:3], images=True)
    torch.testing.assert_close(flat(clip), recorded["features_clip_other"], rtol=0, atol=1e-5)
    torch.testing.assert_close(flat(image), recorded["features_image_other"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "name", "rows"),
    [
        ((WIDTH, 14, 4), "pos_table_224", None),
        ((WIDTH, 14, 1), "pos_table_image_224", None),
        ((WIDTH, 10, 4), "pos_table_other", None),
        ((WIDTH, 10, 1), "pos_table_image_other", None),
        ((WIDTH, 14, 8), "pos_tiny_224_8frames.rows", "pos_rows_8frames"),
        ((WIDTH, 28, 4), "pos_tiny_448.rows", "pos_rows_448"),
        ((1024, 14, 4), "pos_real1024_224.rows", "pos_rows_224"),
        ((1024, 28, 4), "pos_real1024_448.rows", "pos_rows_448"),
    ],
)
def test_positions_are_exact(
    recorded: dict[str, torch.Tensor], shape: tuple[int, int, int], name: str, rows: str | None
) -> None:
    table = position_table(*shape)
    assert torch.equal(table if rows is None else table[0, recorded[rows]], recorded[name])


def test_the_table_is_no_weight_and_is_real_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = UMT(tower_config("umt"))
    assert "positions" not in model.state_dict()
    assert torch.equal(model.positions, position_table(WIDTH, 14, 4))


@torch.no_grad()
def test_keys_have_no_bias() -> None:
    """A bias of all keys alike would not change the softmax; the names say that there is none."""
    names = tower().state_dict()
    assert "blocks.0.attn.q_bias" in names
    assert "blocks.0.attn.v_bias" in names
    assert not [name for name in names if "k_bias" in name or "qkv.bias" in name]
