"""A video file as a stream reads it: every so many-th frame, in order, when it is needed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipeline.vision.open_video import OpenVideo

DEFAULT_FPS = 2.0  # the rate that Qwen2.5-VL samples videos at


class SourceVideo:
    """Every `stride`-th frame of a video file or a folder of numbered images, from the first one on.

    Without `stride` it is the one that comes nearest to 2 frames per second. Images of a folder come 2 per second.
    """

    def __init__(self, path: Path, *, stride: int | None = None) -> None:
        """Open the file.

        Raises:
            MediaError: it is missing, or no video.
        """
        self.path = path
        self._video = OpenVideo(path)
        found = self._video.survey.average_fps
        file_fps = found if math.isfinite(found) and found > 0 else DEFAULT_FPS
        self.stride = stride or max(1, round(file_fps / DEFAULT_FPS))
        self.fps = file_fps / self.stride  # of the frames that are read
        self.num_frames = math.ceil(self._video.survey.num_frames / self.stride)

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
        """Return when a frame is shown, in seconds from the first one."""
        return index / self.fps
