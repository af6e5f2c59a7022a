"""Needles in films: an image replaces a frame of the user's own videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.evaluation.alike import find_alike, thumbnails
from timeviper_fast.evaluation.trial import Probe, Trial, frame_at
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.video import Video, open_video
from timeviper_fast.video.preprocess import resize_normalize

__all__ = ["FilmHaystack", "ImageNeedle", "read_needles"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImageNeedle:
    """An image, and a question that only it answers.

    Attributes:
        image: a picture file.
        question, answer: the words; with options, the answer is one of them.
        options: choices, labelled A, B, C, ...; each video rotates their order by one place.
    """

    image: str
    question: str
    answer: str
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.options and self.options.count(self.answer) != 1:
            rule = f"be one of the options ({', '.join(self.options)})"
            fail("needle", "answer", rule, self.answer)
        for name in ("question", "answer"):
            if not str(getattr(self, name)).strip():
                fail("needle", name, "not be blank", getattr(self, name))

    def probe(self, task: str, frame: int, depth: float, number: int) -> Probe:
        """The question of a video; its options are rotated by the video's number."""
        turn = number % max(len(self.options), 1)
        options = self.options[turn:] + self.options[:turn]
        truth = chr(65 + options.index(self.answer)) if options else self.answer
        return Probe(task, self.question, truth, (frame,), depth, options=options)


def read_needles(path: str | Path) -> list[ImageNeedle]:
    """Needles of a JSON file: [{"image": ..., "question": ..., "answer": ..., "options": [...]}].

    Images are named relative to the file.

    Raises:
        ArgumentError: the file holds something else.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        return [
            ImageNeedle(
                str(Path(path).parent / row["image"]),
                row["question"],
                row["answer"],
                tuple(row.get("options", ())),
            )
            for row in rows
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        rule = "be an image, or a JSON list of {image, question, answer, options}"
        raise ArgumentError("needle", "needle", rule, path) from error


class FilmHaystack:
    """Frames of films in their order; each video begins at a frame drawn by its seed.

    Args:
        model: encodes the needles.
        tokens: (frames, n, d_model) visual tokens of the films.
        needles: images and questions, each asked once per video.
        facts: a description of the films, kept with the run's settings.
        foot: a sentence about them, shown below figures.
    """

    def __init__(
        self,
        model: TimeViperNetwork,
        tokens: Tensor,
        needles: Sequence[ImageNeedle],
        *,
        facts: Mapping[str, Any] | None = None,
        foot: str = "",
    ) -> None:
        self.tasks = tuple(Path(needle.image).stem for needle in needles)
        if not needles or len(set(self.tasks)) < len(needles):
            fail("needle", "needle", "name different images", list(self.tasks))
        self.facts = {**(facts or {}), "needles": [asdict(needle) for needle in needles]}
        self.foot, self._needles, self._tokens = foot, list(needles), tokens
        pictures = [_encode(model, _one_image(needle.image), [0], 1)[0] for needle in needles]
        self._pictures = torch.cat(pictures)

    @classmethod
    def read(
        cls,
        model: TimeViperNetwork,
        films: Sequence[str],
        needles: Sequence[ImageNeedle],
        *,
        frames: int,
        fps: float = 1.0,
        frame_batch: int = 16,
        progress: Progress | None = None,
    ) -> FilmHaystack:
        """Decode and encode films one after the other, until there are `frames` frames.

        Args:
            model: encodes films and needles; it must not merge frames into clips.
            films: video files, all different.
            needles: see the class.
            frames: length of the longest video.
            fps: sampled frames per second of film.
            frame_batch: frames encoded at a time.
            progress: called with ("frames", done, all).

        Raises:
            ArgumentError: the films are too short, or the model merges frames into clips.
            VideoError: a film cannot be read.
        """
        if model.config.clip_frames != 1:
            rule = "merge no frames into clips, or a needle would change its neighbours"
            fail("needle", "model", rule, f"clips of {model.config.clip_frames} frames")
        if len({Path(film).resolve() for film in films}) < len(films):
            fail("needle", "films", "name different files", list(films))
        tokens, thumbs, done = [], [], 0
        for film in films:
            with open_video(film) as video:
                wanted = video.sample(f"fps:{fps:g}")[: frames - done]
                seen, small = _encode(model, video, wanted, frame_batch)
            done += len(seen)
            tokens.append(seen)
            thumbs.append(small)
            if progress is not None:
                progress("frames", done, frames)
        if done < frames:
            rule = f"hold {frames:,} frames at {fps:g} per second"
            remedy = f"{(frames - done) / fps:,.0f} seconds of film are missing"
            raise ArgumentError("needle", "films", rule, f"{done:,}", remedy)
        alike = find_alike(torch.cat(thumbs))
        names = [Path(film).name for film in films]
        facts = {"films": names, "fps": fps, "film_frames": frames, "alike": alike.to_dict()}
        foot = f"{', '.join(names)} at {fps:g} per second; {alike}"
        return cls(model, torch.cat(tokens), needles, facts=facts, foot=foot)

    def trial(self, frames: int, seed: int, number: int, depths: Sequence[float]) -> Trial:
        """See `Haystack.trial`."""
        if frames > len(self._tokens):
            fail("needle", "frames", f"be at most the films' {len(self._tokens)}", frames)
        places = [frame_at(depth, frames) for depth in depths]
        probes = tuple(
            needle.probe(task, place, depth, number)
            for needle, task, place, depth in zip(self._needles, self.tasks, places, depths)
        )
        own = hash63("film", seed, frames, number)
        return Trial(frames, own, dict(zip(places, range(len(places)))), probes)

    def visual(self, trial: Trial, blind: bool = False) -> Tensor:
        """See `Haystack.visual`."""
        first = trial.seed % (len(self._tokens) - trial.frames + 1)
        tokens = self._tokens[first : first + trial.frames].clone()
        if not blind:
            for frame, needle in trial.needles.items():
                tokens[frame] = self._pictures[needle]
        return tokens


def _one_image(image: str) -> Video:
    video = open_video(image)
    if video.num_frames != 1:
        fail("needle", "needle", "be one picture", f"{image} with {video.num_frames} frames")
    return video


@torch.no_grad()
def _encode(
    model: TimeViperNetwork, video: Video, indices: Tensor | Sequence[int], batch: int
) -> tuple[Tensor, Tensor]:
    """Visual tokens of frames, and thumbnails of them as the vision encoder sees them."""
    config = model.config.vision
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (config.image_mean, config.image_std)
    )
    tokens, thumbs = [], []
    for frames in video.frames(indices, batch):
        rgb = frames.rgb.to(model.device)
        pixels = resize_normalize(
            rgb, config.image_size, config.image_mean, config.image_std, config.resize
        )
        tokens.append(model.encode(pixels.to(model.dtype)))
        thumbs.append(thumbnails(255 * (pixels.float().cpu() * std + mean)))
    return torch.cat(tokens), torch.cat(thumbs)
