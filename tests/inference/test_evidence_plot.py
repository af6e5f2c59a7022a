"""The picture of evidence: its panels, its file, and the error without matplotlib."""

from __future__ import annotations

import sys

import pytest

from tests.inference.test_evidence import evidence
from timeviper_fast.inference.evidence_plot import plot_evidence

PNG = b"\x89PNG\r\n"


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved, save = [], figure.savefig

    def savefig(self, *arguments, **options):
        saved.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", savefig)
    return saved


def test_mass_control_ratio_and_kept_share_the_time_line(figures, tmp_path):
    own = evidence([0.1, 0.3, 0.0], (0, 2, 4)).against(evidence([0.1, 0.1, 0.2], (0, 2, 4)))
    plot_evidence(own, tmp_path / "new" / "out.png", "What costs $5 and $6?")
    assert (tmp_path / "new" / "out.png").read_bytes().startswith(PNG)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.png"]
    mass, ratio, kept = figures[0].axes
    filled, line, control = (patch.get_data() for patch in mass.patches)
    assert filled.values.tolist() == line.values.tolist() == [0.1, 0.3, 0.0]
    assert line.edges.tolist() == [0, 2, 4, 6]
    assert control.values.tolist() == [0.1, 0.1, 0.2]
    # told apart without colours too
    assert mass.patches[2].get_linestyle() != mass.patches[1].get_linestyle()
    assert ratio.patches[0].get_data().values.tolist() == pytest.approx(own.ratio)
    assert kept.patches[0].get_data().values.tolist() == [1, 1, 1]
    assert figures[0].get_suptitle() == (
        "What costs $5 and $6?\nwhere the model looked when it chose what to keep"
    )


def test_without_a_control_there_is_no_ratio_and_one_frame_is_seen(figures, tmp_path):
    plot_evidence(evidence([0.4], (7,), clip_frames=4), tmp_path / "out.png")
    mass, kept = figures[0].axes
    assert mass.patches[1].get_data().edges.tolist() == [7, 8]
    assert kept.get_ylabel() == "tokens kept of 4 frames"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    (tmp_path / "out.png").write_bytes(b"before")

    def savefig(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", savefig)
    with pytest.raises(OSError, match="No space"):
        plot_evidence(evidence([0.4, 0.2]), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_matplotlib_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"matplotlib must be installed, got none; .*\[plot\]"):
        plot_evidence(evidence([0.4]), tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
