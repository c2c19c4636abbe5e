"""Files that are no plain row of frames: turned, odd, uneven in time, cut by their own lists, damaged in part."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.vision import SamplingRule
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import decode_cuts, decode_frame, decode_video
from pipeline.vision.open_video import OpenVideo
from pipeline.vision.survey import survey_video
from tests.pipeline.vision.small_videos import Thumbnail, picture, write_video

SOURCE = SamplingRule.parse("source")


def decoded(path, nframe=999, cut=None, **options):
    return decode_video(path, sampling=SOURCE, nframe=nframe, preprocess=Thumbnail(), cut=cut, **options)


def whole_frames(path):
    video = OpenVideo(path)
    return video.first_that_succeeds(lambda reader: list(reader.frames(range(video.survey.num_frames))))


def turn(path, degrees):
    """Write a rotation into the matrix of an MP4's track header, counter-clockwise as ffmpeg counts it."""
    content = bytearray(path.read_bytes())
    cosine, sine = {90: (0, -1), 180: (-1, 0), 270: (0, 1)}[degrees]
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_comes_out_upright_from_both_decoders(tmp_path, degrees):
    path = write_video(tmp_path / "a.mp4", frames=6, width=256, height=128)
    plain, _ = whole_frames(path)
    turn(path, degrees)
    frames, decoder = whole_frames(path)
    assert decoder.startswith("PyAV ")
    for frame, upright in zip(frames, plain, strict=True):
        assert np.array_equal(frame, np.rot90(upright, degrees // 90))
    decord = pytest.importorskip("decord", reason="decord has no wheel for this machine")
    batch = decord.VideoReader(str(path), num_threads=1).get_batch(range(6)).asnumpy()
    assert np.array_equal(np.stack(frames), batch)


@pytest.mark.parametrize(("width", "height"), [(65, 48), (64, 47), (33, 31), (2, 2), (1, 1)])
def test_odd_sizes_keep_their_size(tmp_path, width, height):
    path = write_video(tmp_path / "a.webm", codec="libvpx-vp9", width=width, height=height, frames=4)
    assert decode_frame(path, 3).pixels.shape == (height, width, 3)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_ten_bits_become_eight(tmp_path, codec):
    options = {"x265-params": "log-level=none:open-gop=0"} if codec == "libx265" else {}
    path = write_video(tmp_path / "a.mp4", frames=4, codec=codec, pix_fmt="yuv420p10le", options=options)
    frame = decode_frame(path, 2).pixels
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - picture(2, 64, 48)).mean() < 12


def uneven(path, times, **options):
    """Write a video whose frames are shown at `times`, in milliseconds."""
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"bf": "2", "g": "5"}
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, 64, 48), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_of_a_varying_rate_are_found_by_their_times(tmp_path, name):
    times = [0, 10, 20, 500, 510, 1500, 3000, 3010, 3020, 3030, 4000, 4040]
    path = uneven(tmp_path / name, times)
    assert survey_video(path).times_s == pytest.approx(np.array(times) / 1000, abs=0.002)
    assert decoded(path, cut=Cut(0.4, 3.0)).frame_indices == (3, 4, 5, 6)
    frames, _ = whole_frames(path)
    for index in (7, 3, 11):
        assert np.array_equal(decode_frame(path, index).pixels, frames[index])


def cut_by_edit_list(path, skip):
    """Make an MP4 begin `skip` frames of 1/25 s late, by the edit list alone."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 4
    version = content[place]
    entry = place + 8
    shape = ">qq" if version else ">ii"
    duration, start = struct.unpack_from(shape, content, entry)
    scale = content.index(b"mdhd") + 4
    (timescale,) = struct.unpack_from(">I", content, scale + (20 if content[scale] else 12))
    struct.pack_into(shape, content, entry, duration, start + skip * timescale // 25)
    path.write_bytes(content)


def test_what_an_edit_list_cuts_away_is_not_there(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=20, options={"g": "4", "bf": "2"})
    plain, _ = whole_frames(path)
    cut_by_edit_list(path, 6)
    frames, _ = whole_frames(path)
    assert len(frames) == 14
    for frame, original in zip(frames, plain[6:], strict=True):
        assert np.array_equal(frame, original)
    assert decoded(path, cut=Cut(0.0, 0.04)).frame_indices == (0, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mkv", {"live": "1"}), ("a.mp4", {"movflags": "frag_keyframe+empty_moov"})],
    ids=["without duration", "fragmented"],
)
def test_a_file_that_does_not_tell_its_length_is_counted(tmp_path, name, options):
    path = uneven(tmp_path / name, range(0, 1200, 40), **options)
    with av.open(str(path)) as container:
        assert not container.streams.video[0].frames
    frames, _ = whole_frames(path)
    assert len(frames) == 30
    video = decoded(path, nframe=5)
    assert video.frame_indices == (0, 7, 14, 21, 29)
    for row, index in enumerate(video.frame_indices):
        assert np.array_equal(video.pixels[row], Thumbnail()(frames[index]))


@pytest.fixture
def damaged(tmp_path):
    """A VP9 file of five groups of ten frames; the packet of frame 23 is zeroed."""
    path = write_video(tmp_path / "a.webm", codec="libvpx-vp9", frames=50, options={"g": "10", "lag-in-frames": "0"})
    survey = survey_video(path)
    assert survey.keyframes == (0, 10, 20, 30, 40)
    with av.open(str(path)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.pts == survey.frames[23].pts)
        content = bytearray(path.read_bytes())
        content[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    path.write_bytes(content)
    return path


def test_a_partly_damaged_video_is_an_error_by_default(damaged):
    with pytest.raises(MediaError, match=r"a\.webm: not decodable\. PyAV: frame 23: "):
        decoded(damaged)


def test_a_partly_damaged_video_gives_what_it_holds_if_that_is_allowed(damaged):
    video = decoded(damaged, partial_frames="allow")
    assert video.frame_indices == (*range(23), *range(30, 50))
    assert video.num_frames == 50
    assert (video.partial.asked, video.partial.got) == (50, 43)
    assert video.partial.error.startswith("frame 23: ")
    assert "decord" not in video.partial.error  # its words vary from run to run, and a file's bytes may not
    for row, index in ((22, 22), (23, 30)):
        assert np.array_equal(video.pixels[row], Thumbnail()(decode_frame(damaged, index).pixels))


def test_of_several_cuts_only_the_damaged_one_is_partial(damaged):
    options = {"sampling": SOURCE, "nframe": 99, "preprocess": Thumbnail(), "partial_frames": "allow"}
    whole, part, none = decode_cuts(damaged, [Cut(1.2, 1.6), Cut(0.8, 1.2), Cut(0.96, 1.0)], **options)
    assert whole.partial is None
    assert whole.frame_indices == tuple(range(30, 41))
    assert part.frame_indices == (20, 21, 22, 30)
    assert isinstance(none, MediaError)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_video_that_is_cut_short_gives_its_beginning_if_that_is_allowed(tmp_path, name):
    path = tmp_path / name
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    uneven(path, range(0, 4000, 40), **options)
    frames, _ = whole_frames(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(MediaError):
        decoded(path)
    video = decoded(path, partial_frames="allow")
    assert 30 < video.partial.got < 100
    assert "cut short" in video.partial.error
    for row, index in enumerate(video.frame_indices):
        assert np.array_equal(video.pixels[row], Thumbnail()(frames[index]))


def test_a_file_without_any_frame_stays_an_error(tmp_path):
    path = tmp_path / "garbage.mp4"
    path.write_bytes(b"not a video at all" * 50)
    with pytest.raises(MediaError, match=r"garbage\.mp4: not decodable"):
        decoded(path, partial_frames="allow")


def test_a_whole_video_is_the_same_with_and_without_the_permission(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    with_it, without = decoded(path, partial_frames="allow"), decoded(path)
    assert with_it.partial is None
    assert np.array_equal(with_it.pixels, without.pixels)
