"""The list of videos under the media folder."""

from __future__ import annotations

import os

from timeviper_fast.serve.library import Listed, list_videos


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")


def names(library):
    return [video.name for video in library.videos]


def test_videos_of_all_folders_are_listed_in_the_order_of_people(tmp_path):
    touch(tmp_path, "clip 10.mp4", "clip 2.MKV", "notes.txt", "a/b/film.webm", "x.npz", "mp4")
    library = list_videos(tmp_path)
    assert names(library) == ["a/b/film.webm", "clip 2.MKV", "clip 10.mp4"]
    assert library.videos[0] == Listed("a/b/film.webm", 5)
    assert library.complete


def test_hidden_names_and_what_leads_out_are_not_listed(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    touch(root, "own.mp4", ".hidden.mp4", ".cache/a.mp4", "deep/b.mp4")
    touch(other, "secret.mp4")
    (root / "out.mp4").symlink_to(other / "secret.mp4")
    (root / "folder").symlink_to(other)
    (root / "round").symlink_to(root)
    (root / "gone.mp4").symlink_to(root / "nothing.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (root / "link.mp4").symlink_to(root / "deep/b.mp4")
    os.mkfifo(root / "pipe.mp4")
    (root / "folder.mp4").mkdir()
    library = list_videos(root.resolve())
    assert names(library) == ["deep/b.mp4", "link.mp4", "own.mp4"]
    assert library.complete


def test_a_name_that_is_no_utf8_is_not_listed(tmp_path):
    touch(tmp_path, "own.mp4")
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(b"1")
    assert names(list_videos(tmp_path)) == ["own.mp4"]


def test_the_list_and_the_search_are_bounded(tmp_path):
    touch(tmp_path, *(f"{n}.mp4" for n in range(8)), "inner/deep.mp4")
    assert names(list_videos(tmp_path, most=3)) == ["0.mp4", "1.mp4", "2.mp4"]
    assert not list_videos(tmp_path, most=3).complete
    # nine entries in the root, and one in the folder
    assert list_videos(tmp_path, entries=10).complete
    assert "inner/deep.mp4" in names(list_videos(tmp_path, entries=10))
    for entries in (9, 8, 1):
        cut = list_videos(tmp_path, entries=entries)
        assert not cut.complete
        assert len(names(cut)) <= entries + 1
        assert "inner/deep.mp4" not in names(cut)


def test_hidden_files_count_among_the_entries(tmp_path):
    """A folder full of them is not listed as complete when the search ends in it."""
    touch(tmp_path, *(f".{n}" for n in range(30)), "own.mp4")
    assert not list_videos(tmp_path, entries=20).complete
    assert list_videos(tmp_path, entries=31) == list_videos(tmp_path)
    assert names(list_videos(tmp_path)) == ["own.mp4"]


def test_an_empty_folder_is_an_empty_list(tmp_path):
    library = list_videos(tmp_path)
    assert (library.videos, library.complete) == ((), True)
