"""A video file as a stream reads it: every so many-th frame, in order, when it is needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.vision.open_video import OpenVideo

DEFAULT_FPS = 2.0  # the rate that Qwen2.5-VL samples videos at


class SourceVideo:
    """Every `stride`-th frame of a video file or a folder of numbered images, from the first one on.

    Without `stride` it is the one that comes nearest to 2 frames per second. Images of a folder come 2 per second.
    `is_even`: whether a constant rate shows each frame of the file within half a frame of its time. `fps` is the rate
    of the frames that are read, the mean one of an uneven video.
    """

    def __init__(self, path: Path, *, stride: int | None = None) -> None:
        """Open the file.

        Raises:
            MediaError: it is missing, or no video.
        """
        self.path = path
        self._video = OpenVideo(path)
        survey = self._video.survey
        if math.isnan(survey.average_fps):  # a folder of images
            self.is_even, file_fps = True, DEFAULT_FPS
            times_s = np.arange(survey.num_frames) / DEFAULT_FPS
        else:
            times_s = survey.times_s - survey.times_s[0]
            self.is_even = survey.is_steady
            file_fps = survey.average_fps if self.is_even else (survey.num_frames - 1) / float(times_s[-1])
        self.stride = stride or _nearest_stride(file_fps)
        self.fps = file_fps / self.stride
        self._times_s = times_s[:: self.stride]
        self.num_frames = len(self._times_s)

    def frames(self, start: int, count: int) -> list[np.ndarray]:
        """Return at most `count` frames from the `start`-th on, uint8 [height, width, 3]; none after the last one.

        Raises:
            MediaError: one cannot be decoded.
        """
        indices = [index * self.stride for index in range(start, min(start + count, self.num_frames))]
        if not indices:
            return []
        return self._video.first_that_succeeds(lambda reader: list(reader.frames(indices)))[0]

    def time_s(self, index: int) -> float:
        """Return when a frame is shown, in seconds from the first one; after the last frame, its time."""
        return float(self._times_s[min(index, self.num_frames - 1)])

    def timing(self, start: int, count: int) -> dict[str, Any]:
        """Return what `append_video_chunk` is told of these frames: their rate, or each one's time if it is uneven."""
        if self.is_even:
            return {"fps": self.fps}
        return {"timestamps": [self.time_s(index) for index in range(start, start + count)]}

    def mean_fps(self, count: int) -> float:
        """Return the rate of the first `count` frames, the mean one of an uneven video."""
        return self.fps if self.is_even or count < 2 else (count - 1) / self.time_s(count - 1)

    @property
    def pace(self) -> str:
        """In words, how the frames follow each other."""
        if self.is_even:
            return "even"
        apart_s = np.diff(self._times_s)
        return f"uneven, {apart_s.min():.3g} to {apart_s.max():.3g} s apart" if len(apart_s) else "one frame"


def _nearest_stride(file_fps: float) -> int:
    # The nearer of the strides around a fraction need not give the nearer rate.
    below = max(1, math.floor(file_fps / DEFAULT_FPS))
    return min(below, below + 1, key=lambda stride: abs(file_fps / stride - DEFAULT_FPS))
