"""Damage is known frame by frame, and no smeared picture is shown as a sound one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.video.common import damage, lose, number_of, pictures
from timeviper_fast.errors import VideoError
from timeviper_fast.video import Video, open_video, write_video


def sound_frames(video: Video, clean: np.ndarray, start: float) -> list[int]:
    """The frames that are shown as sound ones; each must look as it did before the damage."""
    seen = []
    for frames in video.frames(range(video.num_frames), 8):
        for rgb, second in zip(frames.rgb.numpy().astype(int), frames.seconds.tolist()):
            number = round((second - start) * 25)
            assert np.abs(rgb - clean[number]).mean() < 1, number
            seen.append(number)
    return seen


@pytest.mark.parametrize("packet", [10, 11, 19, 20, 21, 33])
def test_a_lost_packet_reaches_to_the_next_key_frame(tmp_path: Path, packet: int) -> None:
    whole, lossy = tmp_path / "film.ts", tmp_path / "lossy.ts"
    write_video(whole, pictures(50), 25, options={"g": "10", "bf": "2", "sc_threshold": "0"})
    with open_video(whole) as video:
        clean = np.concatenate([f.rgb.numpy() for f in video.frames(range(50))]).astype(int)
        start = float(video.seconds[0])
    lose(whole, lossy, packet)
    # its data goes to the packet before, so the group of that one is damaged from there on
    reached = {packet - 1, packet} if packet % 10 == 0 else set()
    reached |= set(range(packet - 1 if packet % 10 else packet, packet // 10 * 10 + 10))
    with open_video(lossy, on_error="use") as video:
        seen = sound_frames(video, clean, start)
    outside = [number for number in range(50) if number // 10 != packet // 10]
    assert set(outside) - set(seen) <= {packet - 1, packet - 2, packet - 3}
    assert len(set(range(50)) - set(seen)) <= len(reached) + 3
    video = open_video(lossy)
    with pytest.raises(VideoError, match=r"cannot be decoded \(the file lacks data"):
        list(video.frames(range(video.num_frames)))
    assert len(list(video.frames([0, 1]))) == 1


def test_a_picture_before_its_damaged_reference_is_not_sound(tmp_path: Path) -> None:
    """Pictures that refer to a later one are displayed before it; its damage is known only then."""
    whole = tmp_path / "film.mp4"
    options = {"g": "50", "bf": "3", "b_strategy": "0", "crf": "1", "sc_threshold": "0"}
    write_video(whole, pictures(40), 25, options=options)
    with open_video(whole) as video:
        clean = np.concatenate([f.rgb.numpy() for f in video.frames(range(40))]).astype(int)
    # stored: 0, 4, 2, 1, 3, 8, ...: packet 5 is frame 8, the reference of 5, 6 and 7
    path = damage(whole, tmp_path / "damaged.mp4", 5)
    with open_video(path, on_error="use") as video:
        assert sound_frames(video, clean, 0.0) == [0, 1, 2, 3, 4]


def test_frames_of_a_joined_recording_are_found_without_seeks(tmp_path: Path) -> None:
    """Each time stamp occurs twice there, so that no seek could tell where it landed."""
    part, path = tmp_path / "part.ts", tmp_path / "joined.ts"
    write_video(part, pictures(400), 25, options={"g": "25", "preset": "ultrafast"})
    path.write_bytes(part.read_bytes() * 2)
    with open_video(path) as video:
        assert video.num_frames == 800
        chosen = [5, 399, 400, 790]
        (frames,) = video.frames(chosen)
        assert [number_of(one) for one in frames.rgb] == [at % 400 for at in chosen]
        seconds = video.seconds - video.seconds[0]
        assert seconds[790].item() == pytest.approx(790 / 25, abs=0.05)
        assert video.notes == (
            "the time stamps start anew in 1 place; each part follows the one before",
        )
