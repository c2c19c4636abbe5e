"""From a file to the model's pixels, and what happens to files that give none."""

from __future__ import annotations

import pickle
import shutil
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.vision import SamplingRule, decoding, open_video
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import decode_frame, decode_video
from pipeline.vision.pyav_reader import PyavReader
from pipeline.vision.survey import matroska_end
from tests.pipeline.vision.small_videos import Thumbnail, write_tone, write_video

SOURCE = SamplingRule.parse("source")


def decoded(path, nframe=8, sampling=SOURCE, start_s=None, end_s=None, **options):
    cut = Cut(start_s, end_s)
    return decode_video(path, sampling=sampling, nframe=nframe, preprocess=Thumbnail(), cut=cut, **options)


def test_a_video_becomes_one_array_of_its_sampled_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=20)
    video = decoded(path)
    assert video.pixels.shape == (8, 8, 8, 3)
    assert video.frame_indices == (0, 2, 5, 8, 10, 13, 16, 19)
    assert video.num_frames == 20
    assert video.decoder.startswith("PyAV ")
    assert video.partial is None
    for row, index in enumerate(video.frame_indices):
        assert np.array_equal(video.pixels[row], Thumbnail()(decode_frame(path, index).pixels))


def test_repeated_indices_give_repeated_rows(tmp_path):
    video = decoded(write_video(tmp_path / "a.mp4", frames=3), nframe=7, sampling=SamplingRule.parse("longva"))
    assert video.frame_indices == (0, 0, 0, 1, 1, 1, 2)
    assert np.array_equal(video.pixels[0], video.pixels[2])
    assert not np.array_equal(video.pixels[2], video.pixels[3])


def test_a_clip_is_the_frames_shown_between_its_bounds(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=50, rate=25)
    assert decoded(path, nframe=99, start_s=1.0, end_s=1.2).frame_indices == tuple(range(25, 31))
    assert decoded(path, nframe=99, end_s=0.0).frame_indices == (0,)
    assert decoded(path, nframe=2, start_s=1.5).frame_indices == (38, 49)
    assert decoded(path, start_s=1.5).num_frames == 50


def test_a_clip_without_frames_is_an_error_that_tells_where_the_video_ends(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=25)
    with pytest.raises(MediaError, match=r"a\.mp4: no frame between 5 s and 6 s; the last is shown at 0\.960 s"):
        decoded(path, start_s=5, end_s=6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mkv", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "log=0"}}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("a.ts", {"codec": "libx264"}),
        ("a.mpg", {"codec": "mpeg1video"}),
        ("odd.mpg", {"codec": "mpeg1video", "height": 47}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.h264", {"codec": "libx264", "container": "h264"}),
    ],
)
def test_what_decord_cannot_read_exactly_is_decoded_all_the_same(tmp_path, name, settings):
    path = write_video(tmp_path / name, **settings)
    video = decoded(path, nframe=99)
    assert video.frame_indices == tuple(range(12))
    assert len({row.tobytes() for row in video.pixels}) == 12
    for index in (7, 2, 11, 7):
        assert np.array_equal(Thumbnail()(decode_frame(path, index).pixels), video.pixels[index])


@pytest.mark.parametrize(
    "settings", [{}, {"codec": "mpeg2video"}, {"codec": "libvpx-vp9"}, {"codec": "libvpx-vp9", "height": 47}]
)
def test_the_frames_are_those_of_decord(tmp_path, settings):
    """MPEG-2 and odd heights go to decord first, the others to PyAV, which gives the same bits."""
    decord = pytest.importorskip("decord", reason="decord has no wheel for this machine")
    path = write_video(tmp_path / "a.mp4", frames=20, **({"width": 66, "height": 48} | settings))
    video = decoded(path)
    batch = decord.VideoReader(str(path), num_threads=1).get_batch(list(video.frame_indices)).asnumpy()
    assert np.array_equal(video.pixels, np.stack([Thumbnail()(frame) for frame in batch]))
    goes_first = "decord" if "height" in settings or settings.get("codec") == "mpeg2video" else "PyAV"
    assert video.decoder.split()[0] == goes_first


def test_without_decord_the_frames_are_the_same(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", frames=20, codec="mpeg2video")
    usual = decoded(path)
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    fallback = decoded(path)
    assert (usual.decoder.split()[0], fallback.decoder.split()[0]) == ("decord", "PyAV")
    assert np.array_equal(fallback.pixels, usual.pixels)


class FailsMidway(PyavReader):
    """Gives three wrong frames and then an error."""

    def frames(self, indices):
        for frame in super().frames(indices[:3]):
            yield 255 - frame
        raise MediaError("frame 3: broken on purpose")


def test_a_decoder_that_fails_midway_leaves_nothing_behind(tmp_path, monkeypatch):
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    path = write_video(tmp_path / "a.mp4")
    usual = decoded(path)
    monkeypatch.setitem(open_video.READERS, "PyAV", FailsMidway)
    redone = decoded(path)
    assert redone.decoder.startswith("decord ")
    assert np.array_equal(redone.pixels, usual.pixels)


def test_the_error_of_an_undecodable_video_is_one_line_with_every_decoders_reason(tmp_path, monkeypatch):
    def fails(path, survey, *media, **options):
        raise MediaError("frame 0: broken on purpose")

    for name in ("PyAV", "decord"):
        monkeypatch.setitem(open_video.READERS, name, fails)
    with pytest.raises(MediaError) as caught:
        decoded(write_video(tmp_path / "a.mp4"))
    assert str(caught.value) == (
        "a.mp4: not decodable. PyAV: frame 0: broken on purpose; decord: frame 0: broken on purpose"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_picture_of_another_size_comes_from_decord_as_it_scales_it(tmp_path):
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    path = _two_sizes(tmp_path)
    for order in ((3, 20), (20, 3)):
        for index in order:
            found = decode_frame(path, index)
            assert found.pixels.shape == (240, 320, 3)
            assert found.decoder.startswith("PyAV" if index == 3 else "decord")


def test_without_decord_a_picture_of_another_size_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert decode_frame(_two_sizes(tmp_path), 20).pixels.shape == (128, 160, 3)


def _two_sizes(folder):
    options = {"bf": "0"}
    parts = [write_video(folder / f"{w}.h264", width=w, height=h, options=options) for w, h in ((320, 240), (160, 128))]
    both = folder / "both.h264"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    target = folder / "both.mkv"
    with av.open(str(both)) as source, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            output.mux(packet)
    return target


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"not a video at all" * 50])
def test_a_file_that_is_no_video_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "garbage.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"^garbage\.mp4: .+") as caught:
        decoded(path)
    assert "\n" not in str(caught.value)


def test_sound_alone_is_an_error(tmp_path):
    with pytest.raises(MediaError, match="no video stream"):
        decoded(write_tone(tmp_path / "a.m4a"))


def test_a_missing_file_is_an_error_that_tells_where_it_was_looked_for(tmp_path):
    with pytest.raises(MediaError, match=f"gone.mp4: no such file in {tmp_path}"):
        decoded(tmp_path / "gone.mp4")
    with pytest.raises(MediaError, match=f"gone.mp4: no such file in {tmp_path}"):
        decode_frame(tmp_path / "gone.mp4", 0)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_a_file_that_is_cut_short_is_an_error_and_no_shorter_video(tmp_path, name):
    codec = {"a.webm": "libvpx-vp9"}.get(name, "libx264")
    path = write_video(tmp_path / name, frames=60, width=320, height=240, codec=codec)
    if name == "a.mp4":
        path = _with_its_index_in_front(path)
    content = path.read_bytes()
    for share in (0.35, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(MediaError, match=name):
            decoded(path)


def _with_its_index_in_front(path):
    target = path.with_name("front.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target.replace(path)


def test_a_matroska_file_tells_its_length():
    header = b"\x1a\x45\xdf\xa3\x84abcd" + b"\x18\x53\x80\x67"
    assert matroska_end(header + b"\x01\0\0\0\0\0\x10\0" + bytes(8)) == len(header) + 8 + 0x1000
    assert matroska_end(header + b"\x01" + b"\xff" * 7 + bytes(8)) is None
    assert matroska_end(b"RIFF" + bytes(40)) is None


def test_a_change_of_size_in_midstream_is_survived(tmp_path):
    large = write_video(tmp_path / "a.h264", width=320, height=240)
    small = write_video(tmp_path / "b.h264", width=160, height=128)
    path = tmp_path / "both.h264"
    path.write_bytes(large.read_bytes() + small.read_bytes())
    video = decoded(path, nframe=99)
    assert video.num_frames == 24
    assert decode_frame(path, 3).pixels.shape == (240, 320, 3)
    assert decode_frame(path, 20).pixels.shape == (128, 160, 3)


def test_full_size_frames_are_never_held_together(tmp_path):
    path = write_video(tmp_path / "large.mp4", frames=40, width=1280, height=720, options={"preset": "ultrafast"})
    decoded(path, nframe=2)
    tracemalloc.start()
    try:
        decoded(path, nframe=40)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 1280 * 720 * 3


def test_a_frame_of_a_replaced_file_is_the_new_files(tmp_path):
    path = write_video(tmp_path / "episode.mp4", frames=5)
    before = decode_frame(path, 4).pixels
    other = write_video(tmp_path / "other.mp4", frames=9)
    shutil.copyfile(other, path)
    assert not np.array_equal(decode_frame(path, 8).pixels, before)


def test_a_frame_that_a_video_does_not_have_is_an_error(tmp_path):
    path = write_video(tmp_path / "episode.mp4", frames=5)
    for index in (-1, 5):
        with pytest.raises(MediaError, match=f"no frame {index}, the video has 5"):
            decode_frame(path, index)


def test_only_a_few_videos_stay_open(tmp_path):
    for number in range(7):
        decode_frame(write_video(tmp_path / f"{number}.mp4", frames=2), 1)
    assert len(decoding._OPEN_VIDEOS) == 4
