"""A video gives every so many-th frame, at its rate, to its end."""

from __future__ import annotations

import numpy as np
import pytest

from consumers.streaming.reports import SourceVideo
from pipeline.errors import MediaError
from pipeline.vision.decoding import decode_frame


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


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        SourceVideo(tmp_path / "missing.mp4")
