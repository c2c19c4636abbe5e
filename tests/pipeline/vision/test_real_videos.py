"""Real files from other projects' test suites: each gives frames or a named error, and decoders agree."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.vision import SamplingRule
from pipeline.vision.decoding import decode_frame, decode_video
from pipeline.vision.decord_reader import DecordReader
from pipeline.vision.pyav_reader import PyavReader
from pipeline.vision.survey import survey_video

NO_FRAMES = {
    "decord_corrupted.mp4": "frame 30",
    "moviepy_audio_with_attached_pic.mp3": "only a cover picture",
    "streamio_broken.mp4": "Invalid data",
    "streamio_empty.flv": "Invalid data",
    "tc_audio_only.mp3": "no video stream",
}
# Only PyAV can, or may: why decord is not asked.
DECORD_CANNOT = {
    "-video-with-dash-.mp4",  # 1 x 1: decord returns the padding of its rows
    "tc_animated.gif",
    "tc_frame_exceeds_screen.gif",
    "tc_transparent.gif",
    "tc_h265_video.mp4",  # open groups of pictures: decord returns frame 6 for 5
    "tc_sine_stereo_mp2.mpg",  # decord returns frame 2 for 14
}
# Largest difference of a channel value, of 255, and why there is one.
DECORD_DIFFERS = {
    "tc_h264_10bits.mp4": 175,  # 10 bits: ffmpeg 4 overflows in a few pixels at colour edges
    "tc_h265_10bits.mp4": 168,
    "tc_nasa_13013_hdr.mp4": 23,
    "tc_testsrc2_odd_height_and_width_mpeg2.mp4": 71,  # odd height with chroma of half the height, edge filters
}
# PyAV's bits are not sure to be decord's, so decord goes first.
DECODED_BY_DECORD = {*DECORD_DIFFERS, "tc_testsrc2_odd_height_and_width_444_10bit.mp4"}
MEDIA = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".flv", ".mpg", ".mp3")


class Corner:
    """The top left pixel."""

    height = 1
    width = 1

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        return frame[:1, :1]


def media(folder):
    return sorted(path for path in (folder / "videos").iterdir() if path.suffix in MEDIA)


def outcome(path) -> str:
    """Decode four frames; return the decoder's name, or the error."""
    try:
        video = decode_video(path, sampling=SamplingRule.parse("source"), nframe=4, preprocess=Corner())
    except MediaError as exc:
        return str(exc)
    assert len(video.pixels) == min(4, video.num_frames), path.name
    return video.decoder.split()[0]


def test_every_file_gives_frames_or_a_named_error(real_media):
    files = media(real_media)
    assert len(files) > 40
    for path in files:
        found = outcome(path)
        if path.name in NO_FRAMES:
            assert found.startswith(f"{path.name}: "), found
            assert NO_FRAMES[path.name] in found
            assert "\n" not in found
            assert ".cc:" not in found
        else:
            assert found == ("decord" if path.name in DECODED_BY_DECORD else "PyAV"), path.name


def test_both_decoders_give_the_same_bits_but_for_the_listed_files(real_media):
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    for path in media(real_media):
        if path.name in NO_FRAMES or path.name in DECORD_CANNOT:
            continue
        survey = survey_video(path)
        indices = sorted({int(i) for i in np.linspace(0, survey.num_frames - 1, 12)})
        worst = 0
        pairs = zip(DecordReader(path, survey).frames(indices), PyavReader(path, survey).frames(indices), strict=True)
        for frame, other in pairs:
            assert frame.shape == other.shape, path.name
            worst = max(worst, int(np.abs(frame.astype(int) - other).max()))
        assert worst <= DECORD_DIFFERS.get(path.name, 0), path.name


def test_rotated_files_come_out_upright(real_media):
    for name, shape in (
        ("decord_video_0.mov", (320, 568, 3)),
        ("decord_video_90.mov", (568, 320, 3)),
        ("decord_video_270.mov", (568, 320, 3)),
        ("streamio_sideways movie.mov", (640, 480, 3)),
    ):
        path = real_media / "videos" / name
        assert decode_frame(path, 0).pixels.shape == shape
        assert next(PyavReader(path, survey_video(path)).frames([0])).shape == shape


def test_the_counter_shows_its_thirty_frames(real_media):
    path = real_media / "videos" / "psd_counter.mp4"
    video = decode_video(path, sampling=SamplingRule.parse("source"), nframe=128, preprocess=Corner())
    assert video.num_frames == 30
    assert video.frame_indices == tuple(range(30))
    frames = [decode_frame(path, index).pixels for index in range(0, 30, 5)]
    assert len({frame.tobytes() for frame in frames}) == 6


def test_steps_of_a_lerobot_file_are_its_frames(real_media):
    path = next((real_media / "robots").glob("lerobot*/videos/**/*.mp4"))
    survey = survey_video(path)
    asked = [0, survey.num_frames - 1, 3, 4, survey.num_frames // 2]
    in_order = dict(zip(sorted(asked), PyavReader(path, survey).frames(sorted(asked)), strict=True))
    for index in asked:
        assert np.array_equal(decode_frame(path, index).pixels, in_order[index])
