"""Samples to one packed sequence: alone and together, gradients, checkpointing, and errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.training.common import CONFIG, pixels, samples, tiny, turns
from timeviper_fast.config import CompressionStage, ProjectorConfig, VisionConfig
from timeviper_fast.dataset.sample import Sample
from timeviper_fast.text.prompt import build_prompt
from timeviper_fast.training.loss import packed_forward
from timeviper_fast.training.packed import PackedModel, embed_packed


def test_a_pack_holds_what_the_model_embeds_for_each_sample_alone():
    model = tiny()
    together = embed_packed(model, samples())
    start = 0
    for sample, segment in zip(samples(), together.segments):
        inside = together.embeddings[:, start : start + segment.length]
        alone = embed_packed(model, [sample])
        torch.testing.assert_close(inside, alone.embeddings, rtol=0, atol=1e-6)
        assert alone.segments == (segment,)
        own = together.labels[start : start + segment.length]
        assert torch.equal(own, alone.labels)
        assert model.tokenizer.decode(own[own >= 0]).startswith(sample.messages[-1]["content"])
        start += segment.length
    assert start == together.embeddings.shape[1] == len(together.labels)


def test_a_content_stage_trains_on_what_it_keeps():
    stage = CompressionStage(0, "content", 1.0, transfer=False, prune=0.5, match="best")
    model = tiny()
    model.set_stages((stage, *model.config.stages))
    inputs = embed_packed(model, samples())
    packed = packed_forward(model.backbone, inputs.embeddings, inputs.segments, inputs.labels)
    for sample, segment, record in zip(samples(), inputs.segments, packed.records[0]):
        each = model.config.frame_tokens(sample.frames) if sample.frames else 0
        assert segment.frame_tokens == each
        kept = stage.kept_count(segment.vision_tokens, each)
        assert (record.layer, record.tokens_after) == (0, kept)
    packed.loss.backward()
    assert all(p.grad is not None for p in model.projector.parameters())


def test_the_visual_tokens_are_those_that_encode_gives():
    model, sample = tiny(), samples()[0]
    inputs = embed_packed(model, [sample])
    span = inputs.segments[0].span
    visual = model.encode(sample.pixels).flatten(0, 1)
    inside = inputs.embeddings[0, span.start : span.stop]
    torch.testing.assert_close(inside, visual, rtol=0, atol=1e-6)


def test_the_query_of_attention_stages_is_the_token_that_asks_at_inference():
    model, sample = tiny(), samples()[0]
    inputs = embed_packed(model, [sample])
    segment = inputs.segments[0]
    asks = segment.length - segment.query_from_end - 1
    assert inputs.labels[asks] < 0 <= inputs.labels[asks + 1]
    last = build_prompt(model.tokenizer, "What is it?").after[-1]
    assert torch.equal(inputs.embeddings[0, asks], model.backbone.embeddings.weight[last])


def test_the_loss_of_a_pack_is_the_sum_of_each_sample_alone():
    wrapper = PackedModel(tiny(torch.float64), selection_weight=0.0)
    given = [s for s in samples() if s.features is None]
    together = wrapper(given).loss
    alone = sum(wrapper([sample]).loss for sample in given)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_the_gradients_of_a_pack_are_the_sum_of_each_sample_alone():
    """The vision encoder learns, and sees the frames of all samples in one batch."""
    given, gradients = [samples()[0], Sample(turns("Who?", "Me."), pixels=pixels(6, 3))], []
    for packs in ([given], [[sample] for sample in given]):
        wrapper = PackedModel(tiny(torch.float64), selection_weight=0.0)
        for pack in packs:
            wrapper(pack).loss.backward()
        gradients.append({name: p.grad for name, p in wrapper.model.named_parameters()})
    together, alone = gradients
    assert any(name.startswith("vision.") for name in together)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("part", ["vision", "projector", "backbone"])
def test_gradients_are_those_of_finite_differences(part):
    """The whole model in float64, on two samples with vision and a text; the encoder learns."""
    wrapper = PackedModel(tiny(torch.float64), selection_weight=0.3)
    wrapper(samples()).loss.backward()
    generator = torch.Generator().manual_seed(1)
    checked = 0
    for name, parameter in wrapper.model.named_parameters():
        if not name.startswith(part) or parameter.numel() == 0:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(wrapper(samples()).loss)
                parameter.sub_(sign * step * direction)
        difference = (values[0] - values[1]) / (2 * step)
        slope = (parameter.grad * direction).sum()
        torch.testing.assert_close(slope, difference, rtol=2e-5, atol=2e-6, msg=name)
        checked += 1
    assert checked > 3


def test_a_frozen_vision_encoder_gets_no_gradient_and_the_projector_does():
    model = tiny()
    model.vision.requires_grad_(False)
    PackedModel(model)(samples()).loss.backward()
    assert all(parameter.grad is None for parameter in model.vision.parameters())
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in model.projector.parameters())


def test_a_pack_without_vision_gives_every_parameter_a_gradient():
    model = tiny()
    PackedModel(model)([Sample(turns("Why?", "So."))]).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert float(model.projector.layers[0].weight.grad.abs().sum()) == 0


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = tiny(torch.float64)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = on
        PackedModel(model, 0.3)(samples()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_gradient_checkpointing_keeps_less():
    saved = []
    for on in (False, True):
        model, sizes = tiny(), []
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = on

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            PackedModel(model)(samples())
        saved.append(sum(sizes))
    assert saved[1] < 0.6 * saved[0]


def test_under_autocast_the_loss_is_nearly_the_same():
    model = tiny()
    exact = PackedModel(model)(samples()).predicted.loss
    with torch.autocast("cpu", torch.bfloat16):
        lower = PackedModel(model)(samples())
    lower.loss.backward()
    assert abs(lower.predicted.loss.item() - exact.item()) < 0.05 * exact.item()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_clips_do_not_reach_into_the_next_sample():
    model = tiny(projector=ProjectorConfig(num_tokens=4, merge_heads=4, clip_frames=2))
    two = [
        Sample(turns("a", "b"), pixels=pixels(4, 1)),
        Sample(turns("a", "b"), pixels=pixels(2, 2)),
    ]
    together = embed_packed(model, two).embeddings
    alone = torch.cat([embed_packed(model, [one]).embeddings for one in two], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_an_image_between_clips_is_encoded_and_merged_alone():
    """One frame is an image of 3 tokens; a clip of 2 frames has 8."""
    projector = ProjectorConfig(num_tokens=4, merge_heads=4, clip_frames=2, image_tokens=3)
    model = tiny(projector=projector)
    mixed = [Sample(turns("a", "b"), pixels=pixels(n, n)) for n in (2, 1, 4)]
    together = embed_packed(model, mixed)
    assert [segment.span.length for segment in together.segments] == [8, 3, 16]
    alone = torch.cat([embed_packed(model, [one]).embeddings for one in mixed], dim=1)
    torch.testing.assert_close(together.embeddings, alone, rtol=0, atol=1e-6)
    image = embed_packed(model, mixed[1:2])
    first = image.segments[0].span.start
    want = model.encode(mixed[1].pixels, images=True)
    torch.testing.assert_close(image.embeddings[:, first : first + 3], want, rtol=0, atol=1e-6)


def test_the_loss_needs_no_logits_beyond_the_supervised_tokens():
    model = tiny()
    packed = packed_forward(model.backbone, *embed_packed(model, samples()))
    assert packed.logits.shape == (len(packed.targets), CONFIG.backbone.vocab_size)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "embed_packed: samples must hold a sample, got none"),
        (
            [Sample(turns("a", "b"), features=torch.zeros(2, 3, 16), name="here:7")],
            r"features must be \(frames, 4, 16\), got \(2, 3, 16\) in here:7",
        ),
        (
            [Sample(turns("a", "b"), pixels=pixels(1, size=12))],
            r"pixels must be \(frames, 3, 16, 16\)",
        ),
    ],
)
def test_errors(given, message):
    with pytest.raises(ValueError, match=message):
        embed_packed(tiny(), given)


def test_frames_that_fill_no_clip_are_refused():
    model = tiny(projector=ProjectorConfig(num_tokens=4, merge_heads=4, clip_frames=2))
    with pytest.raises(ValueError, match="pixels must have whole clips of 2 frames, got 3 frames"):
        embed_packed(model, [Sample(turns("a", "b"), pixels=pixels(3))])


def test_patches_of_several_frames_are_not_trained():
    model = tiny()
    vision = VisionConfig(
        kind="radio", image_size=64, patch_size=16, position_side=4, clip_frames=2
    )
    model.config = replace(model.config, vision=vision, projector=ProjectorConfig("gelu_mlp"))
    words = r"embed_packed: vision\.clip_frames must be 1 for training .*, got 2"
    with pytest.raises(NotImplementedError, match=words):
        embed_packed(model, samples())
