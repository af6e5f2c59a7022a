"""The whole model's shape, and the defaults of asking it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from timeviper_fast.config.backbone import BackboneConfig
from timeviper_fast.config.stage import CompressionStage, check_stages
from timeviper_fast.config.vision import ProjectorConfig, VisionConfig
from timeviper_fast.errors import (
    ABOVE_0,
    BOOL,
    TEXT,
    expect,
    expect_one_of,
    fail,
    instance_of,
)

__all__ = ["TimeViperConfig"]

# the names of the chat templates, in text/template.py
_TEMPLATES = (
    "nano_base",
    "qwen2",
    "qwen_2",
    "nemotron_vl",
    "nemotron_vl_joined",
    "nemotron_vl_run_on",
    "nemotron_omni",
)


@dataclass(frozen=True)
class TimeViperConfig:
    """The whole model: the shape of each part, the stages that drop vision tokens, the chat
    template, and the defaults of asking: sampling policy, whether the model is told the video's
    length, and the penalty for repeated tokens."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    stages: tuple[CompressionStage, ...] = ()
    template: str = "nano_base"
    policy: str = "fps:1"
    mention_duration: bool = False
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        owner = "TimeViperConfig"
        expect(owner, self, instance_of(BackboneConfig), "backbone")
        expect(owner, self, instance_of(VisionConfig), "vision")
        expect(owner, self, instance_of(ProjectorConfig), "projector")
        expect(owner, self, instance_of(tuple), "stages")
        expect_one_of(owner, "template", self.template, _TEMPLATES)
        expect(owner, self, TEXT, "policy")
        expect(owner, self, BOOL, "mention_duration")
        expect(owner, self, ABOVE_0, "repetition_penalty")
        patches = self.vision.patches_per_frame
        if self.projector.merges:
            clip, tokens = self.vision.clip_frames, self.projector.num_tokens
            if self.projector.clip_frames % clip:
                rule = f"be a multiple of vision.clip_frames ({clip})"
                fail(owner, "projector.clip_frames", rule, self.projector.clip_frames)
            for name, count in (("num", tokens), ("image", self.projector.tokens_of_image)):
                if count > patches:
                    rule = f"be at most the {patches} patches of a frame"
                    fail(owner, f"projector.{name}_tokens", rule, count)
        if self.projector.merges and self.vision.hidden_size % self.projector.merge_heads:
            rule = f"divide vision.hidden_size ({self.vision.hidden_size})"
            fail(owner, "projector.merge_heads", rule, self.projector.merge_heads)
        if self.projector.shuffles and self.vision.patches_per_side % 2:
            rule = "be even for projector.kind='pixel_shuffle_mlp'"
            fail(owner, "vision.patches_per_side", rule, self.vision.patches_per_side)
        check_stages(self.stages, self.backbone)
        if self.projector.merges and any(s.by_content and s.match == "place" for s in self.stages):
            rule = "have match='best' in a content stage: merged tokens have no fixed place"
            fail(owner, "stages", rule, "match='place'")

    def seeing(self, height: int, width: int) -> TimeViperConfig:
        """This model for frames of that size in pixels: see `VisionConfig.seeing`."""
        vision = self.vision.seeing(height, width)
        return self if vision is self.vision else replace(self, vision=vision)

    @property
    def clip_frames(self) -> int:
        """Frames that the vision encoder or the merge takes together; a video has whole clips."""
        return self.projector.clip_frames if self.projector.merges else self.vision.clip_frames

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens that one frame of a video adds to the prompt, rounded down where a token
        holds patches of several frames."""
        return self.tokens_per_clip // self.clip_frames

    @property
    def tokens_per_clip(self) -> int:
        """Visual tokens of `clip_frames` frames of a video."""
        if self.projector.merges:
            return self.projector.num_tokens * self.projector.clip_frames
        return self.tokens_of_image * self.clip_frames // self.vision.frames_per_patch

    @property
    def tokens_of_image(self) -> int:
        """Visual tokens of an image."""
        if self.projector.merges:
            return self.projector.tokens_of_image
        return self.vision.patches_per_frame // self.projector.patches_per_token

    @property
    def merged_size(self) -> int:
        """Channels of a merged token, which the projector reads and feature files hold."""
        return self.vision.hidden_size * self.projector.patches_per_token

    def frame_tokens(self, frames: int) -> int:
        """Visual tokens of one of `frames` frames, or of the clip in which they are merged: what a
        content stage compares with the one before."""
        if frames == 1:
            return self.visual_tokens(1)
        return self.tokens_per_clip if self.projector.merges else self.tokens_of_image

    def visual_tokens(self, frames: int) -> int:
        """Visual tokens of `frames` frames, the last clip filled up; one frame is an image."""
        if frames == 1:
            return self.tokens_of_image
        return -(-frames // self.clip_frames) * self.tokens_per_clip
