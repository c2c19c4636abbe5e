"""Clips: their bounds, and several of one file decoded together."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MediaError
from pipeline.vision import SamplingRule, open_video
from pipeline.vision.cuts import Cut, frames_of
from pipeline.vision.decoding import decode_cuts, decode_video
from pipeline.vision.pyav_reader import PyavReader
from pipeline.vision.survey import Survey, SurveyedFrame
from tests.pipeline.vision.small_videos import Thumbnail, write_video

SOURCE = SamplingRule.parse("source")


def survey(times, *, fps=25.0, time_base=Fraction(1, 1000), zero=None) -> Survey:
    frames = tuple(SurveyedFrame(time, time, True, place) for place, time in enumerate(times))
    return Survey("mov", "h264", frames, fps, time_base, zero_pts=zero)


def mvbench(start_s, end_s, fps, num_frames):
    """MVBench's `get_index`, its first and its last frame."""
    return max(0, round(start_s * fps)), min(round(end_s * fps), num_frames - 1)


@given(start_s=st.floats(-2, 20), length_s=st.floats(0, 30), fps=st.sampled_from([3.0, 10.0, 24.0, 25.0, 30000 / 1001]))
def test_at_a_steady_rate_the_bounds_are_mvbenchs(start_s, length_s, fps):
    steady = survey([round(i * 1000 / fps) for i in range(200)], fps=fps)
    first, last = mvbench(start_s, start_s + length_s, fps, 200)
    if first > last:
        with pytest.raises(MediaError, match="no frame between"):
            frames_of(Cut(start_s, start_s + length_s), steady)
    else:
        assert frames_of(Cut(start_s, start_s + length_s), steady) == range(first, last + 1)


def test_at_a_varying_rate_the_nearest_frames_in_time_bound_a_clip():
    varying = survey([0, 100, 200, 1000, 5000, 5100], fps=1.0)
    assert list(frames_of(Cut(0.14, 0.9), varying)) == [1, 2, 3]
    assert list(frames_of(Cut(0.15, 4.0), varying)) == [1, 2, 3, 4]
    assert list(frames_of(Cut(None, 0.16), varying)) == [0, 1, 2]
    assert list(frames_of(Cut(5.06), varying)) == [5]
    assert list(frames_of(Cut(-3.0, 99.0), varying)) == [0, 1, 2, 3, 4, 5]
    for nowhere in (Cut(6.0, 7.0), Cut(-3.0, -2.0), Cut(4.0, 1.0)):
        with pytest.raises(MediaError, match="no frame between"):
            frames_of(nowhere, varying)


def test_a_start_that_is_not_zero_does_not_shift_a_clip():
    late = survey([5000 + 40 * i for i in range(50)])
    assert frames_of(Cut(1.0, 1.2), late) == range(25, 31)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("cuts") / "a.mp4", frames=100, options={"g": "10", "bf": "2"})


CUTS = [Cut(0.5, 1.5), Cut(), Cut(1.0, 2.0), Cut(99.0, 100.0), Cut(3.9), Cut(0.5, 1.5)]


def cuts_of(path, cuts, **options):
    return decode_cuts(path, cuts, sampling=SOURCE, nframe=8, preprocess=Thumbnail(), **options)


def test_every_cut_of_a_file_is_what_it_is_alone(path):
    together = cuts_of(path, CUTS)
    for cut, found in zip(CUTS, together, strict=True):
        (alone,) = cuts_of(path, [cut])
        if isinstance(alone, MediaError):
            assert str(found) == str(alone)
            continue
        assert np.array_equal(found.pixels, alone.pixels)
        assert (found.frame_indices, found.num_frames, found.decoder) == (
            alone.frame_indices,
            alone.num_frames,
            alone.decoder,
        )
    assert isinstance(together[3], MediaError)
    assert together[0].frame_indices == (12, 15, 19, 23, 26, 30, 34, 38)


class Counting(PyavReader):
    """Counts how often a file was opened and which frames were asked for."""

    asked: list[int]
    opened = 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        type(self).opened += 1

    def frames(self, indices):
        type(self).asked = [*type(self).asked, *indices]
        return super().frames(indices)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(Counting, "asked", [], raising=False)
    monkeypatch.setattr(Counting, "opened", 0)
    monkeypatch.setitem(open_video.READERS, "PyAV", Counting)
    return Counting


def test_the_file_is_opened_once_and_each_frame_decoded_once(path, counting):
    found = cuts_of(path, CUTS)
    assert counting.opened == 1
    needed = {index for one in found if not isinstance(one, MediaError) for index in one.frame_indices}
    assert counting.asked == sorted(needed)


def test_one_cuts_damage_leaves_the_others_alone(path, monkeypatch):
    class Damaged(PyavReader):
        def frames(self, indices):
            for index, frame in zip(indices, super().frames(indices), strict=True):
                if index > 60:
                    raise MediaError(f"frame {index}: broken on purpose")
                yield frame

    def no_decord(path, survey):
        raise MediaError("broken on purpose")

    undamaged = cuts_of(path, [Cut(0.0, 2.0)])[0]
    monkeypatch.setitem(open_video.READERS, "PyAV", Damaged)
    early, late = cuts_of(path, [Cut(0.0, 2.0), Cut(2.0, 3.0)])
    assert early.decoder == undamaged.decoder
    assert np.array_equal(early.pixels, undamaged.pixels)
    assert late.decoder.startswith("decord ")
    monkeypatch.setitem(open_video.READERS, "decord", no_decord)
    early, late = cuts_of(path, [Cut(0.0, 2.0), Cut(2.0, 3.0)])
    assert np.array_equal(early.pixels, undamaged.pixels)
    assert "broken on purpose" in str(late)


def test_cuts_of_a_file_that_cannot_be_opened_are_errors_each(tmp_path):
    found = cuts_of(tmp_path / "gone.mp4", [Cut(), Cut(0.0, 1.0)])
    assert ["no such file" in str(error) for error in found] == [True, True]
    assert cuts_of(tmp_path / "gone.mp4", []) == []


def test_one_cut_raises_what_several_return(path):
    with pytest.raises(MediaError, match=r"a\.mp4: no frame between 99\.0 s and 100\.0 s"):
        decode_video(path, sampling=SOURCE, nframe=8, preprocess=Thumbnail(), cut=Cut(99.0, 100.0))
