"""A playlist is refused in one sentence that says how to make one file of its pieces."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tests.video.common import numbers, pictures
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, write_video
from timeviper_fast.video.playlist import refuse_playlist

M3U8 = """#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:1
#EXT-X-MEDIA-SEQUENCE:0
#EXTINF:0.5,
one.ts
#EXTINF:0.5,
two.ts
#EXT-X-ENDLIST
"""
JOINED = "join the pieces into one file first: ffmpeg {}-i PLAYLIST -c copy VIDEO.mp4"


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A directory with two pieces of a film."""
    for name in ("one.ts", "two.ts"):
        write_video(tmp_path / name, pictures(5), 10)
    return tmp_path


def refused(source: object, name: str, kind: str, remedy: str, **options: str) -> None:
    sentence = (
        f"{name}: it is a playlist ({kind}), which names the pieces of a video and holds none; "
    )
    with pytest.raises(VideoError, match=f"^{re.escape(sentence + remedy)}$"):
        open_video(source, **options)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["film.m3u8", "film", "film.mp4"])
def test_an_m3u8_playlist_whole_or_not(pieces: Path, name: str, missing: bool) -> None:
    path = pieces / name
    path.write_text(M3U8)
    if missing:
        (pieces / "two.ts").unlink()
    for on_error in ("raise", "use"):
        refused(path, str(path), "m3u8", JOINED.format(""), on_error=on_error)
    refused(M3U8.encode(), "bytes", "m3u8", JOINED.format(""))
    refused(io.BytesIO(b"\xef\xbb\xbf\r\n" + M3U8.encode()), "stream", "m3u8", JOINED.format(""))


def test_a_playlist_behind_a_long_comment(pieces: Path) -> None:
    """FFmpeg looks for its beginning in the first MiB, and would open the pieces that it names."""
    dash = f"<?xml version='1.0'?><!-- {'x' * 9000} --><MPD profiles='urn:mpeg:dash:profile:isoff-live:2011'></MPD>"
    (pieces / "film.mp4").write_text(dash)
    refused(pieces / "film.mp4", str(pieces / "film.mp4"), "DASH", JOINED.format(""))


CONCAT = "a list for FFmpeg's concat"
OTHER = "one of a player's or a studio's"


@pytest.mark.parametrize(
    ("name", "text", "kind", "remedy"),
    [
        ("names.m3u", "one.ts\ntwo.ts\n", "m3u8", JOINED.format("")),
        ("film.mpd", "", "DASH", JOINED.format("")),
        (
            "film",
            '<?xml version="1.0"?>\n<!-- a > b -->\n<MPD xmlns="x">',
            "DASH",
            JOINED.format(""),
        ),
        ("list.txt", "ffconcat version 1.0\nfile one.ts\n", CONCAT, None),
        ("list.txt", "# pieces\n\n# of a film\nfile 'one.ts'\nfile 'two.ts'\n", CONCAT, None),
        ("film.pls", "[playlist]\nFile1=one.ts\n", OTHER, "open the video's own file"),
        ("a.xspf", "<?xml?><playlist version='1'>", OTHER, "open the video's own file"),
        ("a.xml", "<cpl:CompositionPlaylist >", OTHER, "open the video's own file"),
        ("a.ism", "<smil>", OTHER, "open the video's own file"),
    ],
)
def test_other_playlists(pieces: Path, name: str, text: str, kind: str, remedy: str | None) -> None:
    path = pieces / name
    # an empty file is refused as such
    path.write_text(text or "\n")
    refused(path, str(path), kind, remedy or JOINED.format("-f concat -safe 0 "))


def test_a_list_that_only_ffmpeg_knows(tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_text("a text of another kind")
    refuse_playlist(path)
    refuse_playlist(path, "mpegts")
    with pytest.raises(VideoError, match="it is a playlist"):
        refuse_playlist(path, "hls")


def test_the_name_of_a_playlist_makes_none_of_a_film(pieces: Path) -> None:
    path = (pieces / "one.ts").rename(pieces / "one.m3u8")
    with open_video(path) as video:
        assert numbers(video.frames(range(5))) == list(range(5))


def test_a_directory_with_a_playlist_and_a_film_is_read_as_the_film(pieces: Path) -> None:
    (pieces / "two.ts").unlink()
    (pieces / "film.m3u8").write_text(M3U8)
    with open_video(pieces) as video:
        assert video.num_frames == 5
        assert video.notes == ("left out of the directory: 1 file of another kind (film.m3u8)",)
