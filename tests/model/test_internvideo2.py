"""InternVideo2 against what VideoChat-Flash's tower computed."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden
from tests.model.encoders import flat, tower_config, tower_pixels, tower_weights
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.vision.internvideo2 import InternVideo2, position_table


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return golden("vcf_internvideo2_tower")


def tower() -> InternVideo2:
    model = InternVideo2(tower_config("internvideo2"))
    model.load_state_dict(tower_weights("internvideo2"))
    return model


@torch.no_grad()
def test_a_clip_and_an_image(recorded: dict[str, torch.Tensor]) -> None:
    model, pixels = tower(), tower_pixels(golden("vcf_umt_tower")["frames_224"])
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, y: seen.append(y))
    clip, image = model(pixels), model(pixels[1:2], images=True)
    assert clip.shape == (4, 256, 48)
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
    model.set_image_size(112)
    for name in ("pos_embed", "img_pos_embed"):
        assert torch.equal(model.get_parameter(name), recorded[f"{name}_other"])
    clip, image = model(pixels), model(pixels[2:3], images=True)
    torch.testing.assert_close(flat(clip), recorded["features_clip_other"], rtol=0, atol=1e-5)
    torch.testing.assert_close(flat(image), recorded["features_image_other"], rtol=0, atol=1e-5)


def test_positions_begin_as_tables(recorded: dict[str, torch.Tensor]) -> None:
    clip, image = position_table(48, 16, 4), position_table(48, 16, 1)
    torch.testing.assert_close(clip[:, :300:7], recorded["pos_init_224"], rtol=0, atol=1e-6)
    torch.testing.assert_close(image[:, ::7], recorded["pos_init_image_224"], rtol=0, atol=1e-6)
    model = InternVideo2(tower_config("internvideo2"))
    assert torch.equal(model.pos_embed, clip)
    init_weights(model, seed=1)
    assert torch.equal(model.pos_embed, clip)
    assert torch.equal(model.img_pos_embed, image)
