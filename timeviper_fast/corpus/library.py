"""A library of videos that were read: a session or feature file for each, in one folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from timeviper_fast.corpus.attempts import MOST_ATTEMPTS, Attempts
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.inference.feature_file import feature_misfit, save_features
from timeviper_fast.inference.footage import bytes_of, changed_after
from timeviper_fast.inference.memory import item_bytes, session_bytes
from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.session_file import misfit
from timeviper_fast.inference.tensor_file import read_header
from timeviper_fast.stages import parse_stages
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import Progress, open_video

__all__ = ["Level", "Library"]

Level = Literal["session", "features"]
# text tokens in front of a video, of any template; a file's header, names and settings
_BEFORE, _HEADER = 64, 8192


class Library:
    """Files of one model and one set of options.

    Args:
        model: a `TimeViper`; sessions need its tokenizer.
        folder: of the files.
        opening: how each video is read.
        level: "session", or "features", which serve any LLM behind the same vision encoder.
        overwrite: whether a file that does not fit is replaced.
        progress: as in `TimeViper.open`.
    """

    def __init__(
        self,
        model: TimeViper,
        folder: Path,
        opening: Opening,
        level: Level = "session",
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.folder, self.opening, self.level = model, folder, opening, level
        self.overwrite, self.progress = overwrite, progress
        self._attempts = Attempts(folder / ".attempts")

    def planned(self, video: str) -> int:
        """Bytes of a video's file, at most; its frames are counted, and none is decoded.

        Raises:
            ValueError: the video cannot be read.
        """
        config, opening = self.model.config, self.opening
        with open_video(video, on_error=opening.on_error) as source:
            chosen = opening.of_model(config, source.is_image)
            config = config.seeing(*source.size)
            assert chosen.policy is not None
            frames = len(source.sample(chosen.policy, start=chosen.start, end=chosen.end))
        dtype = str(self.model.dtype).removeprefix("torch.")
        if self.level == "features":
            width = config.merged_size * item_bytes(dtype)
            return config.visual_tokens(frames) * width + 8 * frames + _HEADER
        if opening.stages is not None:
            config = replace(config, stages=parse_stages(opening.stages, config))
        return sum(session_bytes(config, _BEFORE, frames, dtype).values()) + _HEADER

    def expect_room(self, targets: Iterable[tuple[str, Path]]) -> None:
        """Refuse videos whose new files the disk cannot hold, before any is read.

        A video that cannot be read counts nothing here: `write` says why.

        Raises:
            ArgumentError: the files need more bytes than are free.
        """
        need, count = 0, 0
        for video, target in targets:
            if target.is_file() and not self.overwrite:
                continue
            try:
                need, count = need + self.planned(video), count + 1
            except (ValueError, OSError):
                continue
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if need > free:
            rule = f"have room for {count} files of {need / 1e9:,.2f} GB together"
            remedy = "give another folder, or fewer frames with policy=..."
            fail("index", "into", rule, f"{free / 1e9:,.2f} GB free", remedy)

    def write(self, video: str, target: Path) -> str:
        """Read a video into its file, unless it is there; say what was done.

        Raises:
            ValueError: there is a file that does not fit and must not be replaced, the video cannot
                be read, or its process ended too often.
        """
        with self._attempts.claim(target.name) as attempt:
            if attempt is None:
                return "another process writes it"
            fault: Exception | None = None
            try:
                if attempt >= MOST_ATTEMPTS:
                    often = f"the process ended {attempt - 1} times while it read this video"
                    raise ValueError(f"{often}; once more tries it again")
                done = self._write(video, target)
            except (ValueError, NotImplementedError) as error:
                # the video's own fault, and no attempt: the next run may try again
                fault = error
        if fault is not None:
            raise fault
        return done

    def close(self) -> None:
        """Remove the folder of attempts, unless a process left one."""
        self._attempts.remove_if_empty()

    def _write(self, video: str, target: Path) -> str:
        # without a tokenizer opening the video says so
        if os.path.lexists(target) and self.model.tokenizer is not None:
            differs = self._misfit(video, target)
            if differs is None:
                return "it is there already"
            if not self.overwrite:
                rule = "fit this model, video and options"
                raise ArgumentError("", str(target), rule, differs, "overwrite=True replaces it")
        if self.level == "features":
            options = {"overwrite": self.overwrite, "progress": self.progress}
            save_features(self.model, video, self.opening, target, **options)  # type: ignore[arg-type]
        else:
            session = self.model.open(video, progress=self.progress, **vars(self.opening))
            session.save(target, overwrite=self.overwrite)
        header = read_header(target)
        frames = 0 if header is None else header.entries["seconds"].shape[0]
        return f"{frames:,} frames, {target.stat().st_size / 1e6:,.1f} MB"

    def _misfit(self, video: str, target: Path) -> str | None:
        header = read_header(target) if target.is_file() else None
        size = bytes_of(video)
        if self.level == "features":
            differs = feature_misfit(header, self.model, self.opening, size)
        else:
            assert self.model.tokenizer is not None
            differs = misfit(header, self.model, self.model.tokenizer, self.opening, size)
        if differs is None and changed_after(video, target):
            # another video may have as many bytes
            return "one that is older than the video"
        return differs
