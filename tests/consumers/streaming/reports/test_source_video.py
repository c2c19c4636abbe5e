"""A video gives every so many-th frame, at its rate, to its end."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from consumers.streaming.reports import SourceVideo
from pipeline.errors import MediaError
from pipeline.vision.decoding import decode_frame
from tests.media import write_video


@pytest.mark.parametrize(("stride", "frames", "fps"), [(1, 24, 8.0), (5, 5, 1.6), (None, 6, 2.0)])
def test_frames_are_those_of_the_file_at_its_rate(video_file, stride, frames, fps):
    video = SourceVideo(video_file, stride=stride)
    assert (video.num_frames, video.fps) == (frames, fps)
    read = [frame for start in range(0, frames, 2) for frame in video.frames(start, 2)]
    assert len(read) == frames
    for index, frame in enumerate(read):
        assert np.array_equal(frame, decode_frame(video_file, index * video.stride).pixels)
    assert video.frames(frames, 4) == []
    assert video.time_s(frames - 1) == (frames - 1) / fps
    assert (video.timing(0, 2), video.pace) == ({"fps": fps}, "even")


def test_frames_of_an_uneven_video_are_told_by_their_own_times(uneven_file):
    video = SourceVideo(uneven_file, stride=5)
    assert [video.time_s(index) for index in range(6)] == pytest.approx([0.0, 0.5, 1.0, 7.2, 17.2, 17.2])
    assert video.timing(2, 2) == {"timestamps": pytest.approx([1.0, 7.2])}
    assert video.fps == pytest.approx(23 / 23.2 / 5)
    assert video.pace == "uneven, 0.5 to 10 s apart"
    assert SourceVideo(uneven_file).stride == 1  # it has less than 2 frames per second, whatever its header says


@pytest.mark.parametrize(
    ("seconds_apart", "stride"), [(0.04, 13), (0.1, 5), (0.125, 4), (0.2, 3), (0.4, 1), (0.5, 1), (2.0, 1)]
)
def test_without_a_stride_the_rate_is_the_nearest_to_2_per_second(tmp_path, seconds_apart, stride):
    times_s = [seconds_apart * index for index in range(6)]
    assert SourceVideo(write_video(tmp_path / "made.mkv", times_s=times_s, frames=6)).stride == stride


def test_images_of_a_folder_come_two_in_a_second_whatever_their_numbers(tmp_path):
    for number in (3, 4, 9):
        Image.new("RGB", (56, 56), (number, 0, 0)).save(tmp_path / f"{number:03}.png")
    video = SourceVideo(tmp_path)
    assert [video.time_s(index) for index in range(3)] == [0.0, 0.5, 1.0]
    assert video.timing(0, 3) == {"fps": 2.0}


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        SourceVideo(tmp_path / "missing.mp4")
