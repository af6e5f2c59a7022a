"""From samples to one packed sequence, with gradients through projector and vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from timeviper_fast.dataset.sample import Sample
from timeviper_fast.errors import ArgumentError, fail, not_built
from timeviper_fast.layout import Segment
from timeviper_fast.text.prompt import Prompt, training_prompt
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.loss import Packed, packed_forward, training_segment
from timeviper_fast.training.selection import selection_loss

__all__ = ["PackedInputs", "PackedModel", "PackedResult", "embed_packed", "sample_prompt"]


class PackedInputs(NamedTuple):
    """The arguments of `packed_forward`.

    Attributes:
        embeddings: (1, seqlen, d_model), text and vision of all samples, one after the other.
        segments: one per sample.
        labels: (seqlen,) int64 on the CPU.
    """

    embeddings: Tensor
    segments: tuple[Segment, ...]
    labels: Tensor


def sample_prompt(model: TimeViper, sample: Sample) -> Prompt:
    """A sample's tokenised conversation. The role header is not supervised, so that the query
    token of attention stages is the prompt's last token, as at inference."""
    if model.tokenizer is None:
        fail("embed_packed", "model", "have a tokenizer", None)
    return training_prompt(
        model.tokenizer,
        sample.messages,
        template=model.config.template,
        vision=sample.pixels is not None or sample.features is not None,
        preface=sample.preface,
        placeholder=sample.placeholder,
        learn_header=False,
    )


def embed_packed(model: TimeViper, samples: Sequence[Sample]) -> PackedInputs:
    """Embed samples one after the other, with gradients.

    The frames of all samples pass through the vision encoder as one batch. It computes no gradients
    if none of its parameters learns.

    Args:
        model: with a tokenizer; only parameters that require gradients get one.
        samples: with pixels (normalised, whole clips), with features, or text only.

    Raises:
        ValueError: there is no sample or no tokenizer, pixels or features have another shape, or a
            conversation breaks the rules of `training_prompt`.
    """
    if not samples:
        raise ArgumentError("embed_packed", "samples", "hold a sample", "none")
    if model.config.vision.frames_per_patch > 1:
        rule = "be 1 for training (patches of several frames are not trained)"
        not_built("embed_packed", "vision.clip_frames", rule, model.config.vision.clip_frames)
    visual = _visual_tokens(model, samples)
    prompts = [sample_prompt(model, sample) for sample in samples]
    ids = [part for prompt in prompts for part in (prompt.before, prompt.after)]
    flat = torch.tensor([i for part in ids for i in part], dtype=torch.long)
    texts = model.backbone.embeddings(flat.to(model.device)).split([len(part) for part in ids])
    pieces, segments, labels = [], [], []
    for i, (sample, prompt, tokens) in enumerate(zip(samples, prompts, visual)):
        pieces += [texts[2 * i], tokens, texts[2 * i + 1]]
        own = torch.tensor(prompt.labels(len(tokens)))
        each = model.config.frame_tokens(sample.frames) if len(tokens) else 0
        segments.append(training_segment(own, prompt.span(len(tokens)), each))
        labels.append(own)
    return PackedInputs(torch.cat(pieces)[None], tuple(segments), torch.cat(labels))


def _visual_tokens(model: TimeViper, samples: Sequence[Sample]) -> list[Tensor]:
    """Visual tokens (tokens, d_model) of each sample; (0, d_model) for one without vision."""
    merged = _merged_features(model, samples)
    counts = [0 if one is None else one.shape[:2].numel() for one in merged]
    present = [one.flatten(0, 1) for one in merged if one is not None]
    if not present:
        empty = torch.empty(0, model.config.backbone.hidden_size)
        return [empty.to(model.device, model.dtype)] * len(samples)
    # under autocast the projector returns the lower precision
    tokens = model.projector.project(torch.cat(present)).to(model.dtype)
    return list(tokens.split(counts))


def _merged_features(model: TimeViper, samples: Sequence[Sample]) -> list[Tensor | None]:
    """(frames, n, vision_size) of each sample after the merge; None for one without vision."""
    for sample in samples:
        tokens = model.config.visual_tokens(sample.frames) // max(sample.frames, 1)
        width = (tokens, model.config.merged_size)
        if sample.features is not None and sample.features.shape[1:] != width:
            shape = f"{tuple(sample.features.shape)} in {sample.name or 'a sample'}"
            rule = f"be (frames, {width[0]}, {width[1]})"
            raise ArgumentError("embed_packed", "features", rule, shape)
    with_pixels = [sample.pixels for sample in samples if sample.pixels is not None]
    encoded = iter(_encode(model, with_pixels))
    return [
        next(encoded)
        if sample.pixels is not None
        else None
        if sample.features is None
        else sample.features.to(model.device, model.dtype)
        for sample in samples
    ]


def _encode(model: TimeViper, pixels: Sequence[Tensor]) -> list[Tensor]:
    """Merged features of each sample's frames. A video has whole clips, so no clip spans two
    samples; one frame is an image."""
    clip = model.config.clip_frames
    for frames in pixels:
        if len(frames) % clip and len(frames) != 1:
            rule = f"have whole clips of {clip} frames"
            raise ArgumentError("embed_packed", "pixels", rule, f"{len(frames)} frames")
    merged: dict[int, Tensor] = {}
    learns = any(parameter.requires_grad for parameter in model.vision.parameters())
    with nullcontext() if learns else torch.no_grad():
        for images in (False, True):
            alone = [len(frames) == 1 and clip > 1 for frames in pixels]
            chosen = [i for i, image in enumerate(alone) if image is images]
            if chosen:
                batch = torch.cat([pixels[i] for i in chosen]).to(model.device)
                features = model.projector.merge(model.vision(batch, images), images)
                merged.update(zip(chosen, features.split([len(pixels[i]) for i in chosen])))
    return [merged[i] for i in range(len(pixels))]


class PackedResult(NamedTuple):
    """The result of `PackedModel` for one pack.

    Attributes:
        loss: scalar to minimise: the supervised tokens' summed cross entropy, plus the weighted
            selection loss times their number.
        predicted: logits, targets and records, as `packed_forward` returns them.
        selection: scalar, the mean selection loss; None if no sample has one.
        length: tokens of the pack, vision included, before the first stage.
    """

    loss: Tensor
    predicted: Packed
    selection: Tensor | None
    length: int


class PackedModel(nn.Module):
    """A model whose `forward` takes packed samples and returns their loss.

    Embedding, projection and prediction run in one `forward`, because FSDP2 gathers the parameters
    only while it runs.

    Args:
        model: with a tokenizer.
        selection_weight: weight of the selection loss; 0 does not compute it.
    """

    def __init__(self, model: TimeViper, selection_weight: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.selection_weight = selection_weight

    def forward(self, samples: Sequence[Sample]) -> PackedResult:
        inputs = embed_packed(self.model, samples)
        wanted = self.selection_weight > 0 and any(sample.needed for sample in samples)
        # Add a zero that depends on every learning parameter outside the layers, so that the
        # layers' input requires a gradient on every rank and all ranks gather the same layers in
        # the backward pass.
        inputs = inputs._replace(embeddings=inputs.embeddings + self._touch())
        packed = packed_forward(self.model.backbone, *inputs, log_scores=wanted)
        loss, chosen = packed.loss, None
        if wanted:
            # tokens hold patches of their whole clip: a clip with a needed frame is needed
            clip = self.model.config.clip_frames
            needed = [sorted({frame // clip for frame in sample.needed}) for sample in samples]
            tokens = self.model.config.visual_tokens(clip)
            chosen = selection_loss(packed.records, needed, tokens)
            if chosen is not None:
                loss = loss + self.selection_weight * chosen
        return PackedResult(loss * len(packed.targets), packed, chosen, len(inputs.labels))

    def _touch(self) -> Tensor | int:
        """0, with a gradient of 0 for each learning parameter of vision, projector and transfers.

        A pack without vision uses none of them, but the optimizer and the gradient reduction over
        several processes need gradients of the same parameters in every step.
        """
        parts = (self.model.vision, self.model.projector, self.model.backbone.transv)
        learning = [p for part in parts for p in part.parameters() if p.requires_grad]
        return sum((0 * p.sum() for p in learning), start=0)
