"""What every decoder promises, on files that all can read: one suite for decord, PyAV and torchcodec."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.vision import reading_plan
from pipeline.vision.decord_reader import DecordReader
from pipeline.vision.media_file import MediaFile
from pipeline.vision.pyav_reader import PyavReader
from pipeline.vision.survey import survey_media, survey_video
from pipeline.vision.torchcodec_reader import TorchcodecReader
from tests.pipeline.vision.small_videos import write_video

FILES = {
    "h264.mp4": {},
    "h264_b_frames.mkv": {"frames": 40, "options": {"g": "8", "bf": "3"}},
    "h264_intra.mp4": {"options": {"g": "1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=0:keyint=6"}},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9", "frames": 30, "options": {"g": "10"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "5"}},
    "one_frame.mp4": {"frames": 1},
    "odd_444.mp4": {"width": 33, "height": 47, "pix_fmt": "yuv444p"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, settings in FILES.items():
        write_video(folder / name, **settings)
    return folder


def opened(kind, path: Path):
    if kind is DecordReader:
        pytest.importorskip("decord", reason="decord has no wheel for this machine")
    if kind is TorchcodecReader:
        pytest.importorskip("torchcodec", reason="torchcodec is not installed")
    return kind(path, survey_video(path))


@pytest.fixture(params=[DecordReader, PyavReader, TorchcodecReader], ids=["decord", "pyav", "torchcodec"])
def kind(request):
    return request.param


@pytest.mark.parametrize("name", FILES)
def test_a_reader_gives_every_frame_in_the_order_asked_with_repeats(kind, folder, name):
    reader = opened(kind, folder / name)
    settings = FILES[name]
    assert reader.num_frames == settings.get("frames", 12)
    assert reader.average_fps == 25
    in_order = list(opened(kind, folder / name).frames(range(reader.num_frames)))
    assert in_order[0].shape == (settings.get("height", 48), settings.get("width", 64), 3)
    assert in_order[0].dtype == np.uint8
    asked = [int(i) for i in np.random.default_rng(0).integers(0, reader.num_frames, 12)]
    asked += [asked[-1], 0, reader.num_frames - 1, 0]
    for index, frame in zip(asked, reader.frames(asked), strict=True):
        assert np.array_equal(frame, in_order[index]), index


@pytest.mark.parametrize("name", FILES)
def test_both_decoders_give_the_same_bits(folder, name):
    decord, pyav = opened(DecordReader, folder / name), opened(PyavReader, folder / name)
    everything = range(pyav.num_frames)
    for frame, other in zip(decord.frames(everything), pyav.frames(everything), strict=True):
        assert np.array_equal(frame, other)


def test_a_reader_names_itself_with_its_version(kind, folder):
    name, version = opened(kind, folder / "h264.mp4").decoder.split(" ")
    assert name in ("decord", "PyAV", "torchcodec")
    assert version[0].isdigit()


def test_a_frame_beyond_the_end_is_an_error_that_names_it(kind, folder):
    with pytest.raises(MediaError, match="frame 12"):
        list(opened(kind, folder / "h264.mp4").frames([3, 12]))


def test_damage_in_the_middle_is_an_error_that_names_the_frame(kind, tmp_path):
    path = write_video(tmp_path / "damaged.webm", codec="libvpx-vp9")
    content = bytearray(path.read_bytes())
    import av

    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(video=0), 6, None))
        content[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"frame \d+: "):
        list(opened(kind, path).frames(range(12)))


def test_decord_is_not_asked_for_open_groups_of_pictures(tmp_path):
    path = tmp_path / "open_gop.mp4"
    params = "log-level=none:open-gop=1:keyint=8:min-keyint=8:bframes=3:b-adapt=0:scenecut=0"
    write_video(path, frames=40, codec="libx265", options={"x265-params": params})
    survey = survey_video(path)
    assert len(survey.keyframes) > 2, "the encoder made no second keyframe: the test tests nothing"
    assert not survey.keyframes_keep_their_order
    with pytest.raises(MediaError, match="open groups"):
        DecordReader(path, survey)
    in_order = list(PyavReader(path, survey).frames(range(40)))
    asked = [39, 8, 9, 7, 31, 16, 15, 0]
    for index, frame in zip(asked, PyavReader(path, survey).frames(asked), strict=True):
        assert np.array_equal(frame, in_order[index]), index


def test_decord_is_refused_where_it_pads_narrow_rows(tmp_path):
    path = write_video(tmp_path / "narrow.mp4", width=8, height=8, pix_fmt="yuv444p")
    with pytest.raises(MediaError, match="frame 0: decord returned the shape"):
        list(opened(DecordReader, path).frames([0]))
    assert next(PyavReader(path, survey_video(path)).frames([0])).shape == (8, 8, 3)


class Counting(PyavReader):
    """Counts the packets that its decoder took, and the pictures that it gave."""

    taken = 0
    decoded = 0

    def _begin(self):
        super()._begin()
        self._packets = self._counted(self._packets)

    def _seek(self, index):
        found = super()._seek(index)
        self._packets = self._counted(self._packets)
        return found

    def _counted(self, packets):
        for packet in packets:
            self.taken += 1
            yield packet

    def _decoded(self, *arguments):
        for frame in super()._decoded(*arguments):
            self.decoded += 1
            yield frame


def counting(folder, name):
    return Counting(folder / name, survey_video(folder / name))


def test_what_nobody_asks_for_is_hardly_decoded(folder, monkeypatch):
    """Two frames of a file of five groups of eight: two keyframes, and what one of them needs."""
    monkeypatch.setattr(reading_plan, "SEEK_US", 0.0)
    reader = counting(folder, "h264_b_frames.mkv")
    list(reader.frames([0, 36]))
    assert reader.decoded <= 2 + 4


def test_a_group_is_left_as_soon_as_its_last_wanted_frame_is_there(folder, monkeypatch):
    monkeypatch.setattr(reading_plan, "SEEK_US", 0.0)
    reader = counting(folder, "h264_b_frames.mkv")
    list(reader.frames([0, 8, 16, 24, 32]))
    assert reader._short_way
    assert reader.taken <= 4 + 8  # of the last group some packets follow before its first picture comes out


def test_frames_asked_for_one_by_one_are_decoded_once(folder):
    reader = counting(folder, "h264_b_frames.mkv")
    for index in range(40):
        next(iter(reader.frames([index])))
    assert reader.decoded == 40


@pytest.mark.parametrize("name", FILES)
def test_the_short_way_is_never_given_up_in_sound_files(folder, name):
    reader = counting(folder, name)
    count = reader.num_frames
    for asked in (range(count), range(0, count, 3), [count - 1, 0], [count // 2]):
        list(reader.frames(asked))
        for half in range(0, count, 2):
            next(iter(reader.frames([half, count - 1])))  # abandoned midway
    assert reader._short_way


def test_the_short_way_is_kept_in_sound_open_groups_of_h264(tmp_path):
    """Behind a seek ffmpeg complains of the pictures that were passed over; none that is wanted needs them."""
    path = tmp_path / "open_gop.mp4"
    params = "open-gop=1:b-pyramid=normal:ref=6:scenecut=0"
    write_video(path, frames=40, options={"g": "12", "bf": "5", "x264-params": params})
    survey = survey_video(path)
    assert not survey.keyframes_keep_their_order
    in_order = list(PyavReader(path, survey).frames(range(40)))
    reader = PyavReader(path, survey)
    asked = [39, 26, 25, 14, 13, 0]
    for index, frame in zip(asked, reader.frames(asked), strict=True):
        assert np.array_equal(frame, in_order[index]), index
    assert reader._short_way


def test_the_long_way_gives_what_a_seek_does_not(folder, monkeypatch):
    in_order = list(PyavReader(folder / "hevc.mp4", survey_video(folder / "hevc.mp4")).frames(range(12)))
    monkeypatch.setattr(Counting, "_seek", lambda self, index: False)
    reader = counting(folder, "hevc.mp4")
    asked = [0, 11, 6, 7]
    for index, frame in zip(asked, reader.frames(asked), strict=True):
        assert np.array_equal(frame, in_order[index])
    assert not reader._short_way


def test_an_opened_file_is_taken_over_from_its_survey(folder):
    for name in FILES:
        path = folder / name
        media = MediaFile.open(path)
        reader = PyavReader(path, survey_media(media), media)
        everything = range(reader.num_frames)
        for frame, other in zip(reader.frames(everything), opened(PyavReader, path).frames(everything), strict=True):
            assert np.array_equal(frame, other), name
        assert reader._media is media, name
